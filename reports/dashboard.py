"""Addresses inside MLflow's own pages."""

import json
from urllib.parse import quote

from reports.records import context_size
from reports.results import children, open_tracking, search

# What MLflow's page still draws legibly, and what fits into an address.
MOST_RUNS = 60


def comparison_addresses(tracking_uri: str, server: str) -> dict[str, str]:
    """Study -> the page on which MLflow compares the cells of the study's newest run, under the server's address.

    The page shows parameters (variant, layout, allocation, scaling, seed, benchmark, context, scale rule) and metrics
    side by side and as parallel coordinates. Of many cells those at the longest contexts are taken.
    """
    client = open_tracking(tracking_uri)
    found = {}
    for experiment in sorted(client.search_experiments(), key=lambda each: each.name):
        here = experiment.experiment_id
        study = next(search(client, here, "tags.kind = 'study'"), None)
        if study is None:
            continue
        trials = {run.info.run_id for run in children(client, here, "trial", {study.info.run_id})}
        cells = [run for run in children(client, here, "cell", trials) if run.info.status == "FINISHED"]
        cells.sort(key=lambda run: (-context_size(run.data.tags["context"]), run.info.run_name))
        if cells:
            ids = json.dumps([run.info.run_id for run in cells[:MOST_RUNS]], separators=(",", ":"))
            query = f"runs={quote(ids)}&experiments={quote(json.dumps([here]))}"
            found[experiment.name] = f"{server}/#/compare-runs?{query}"
    return found
