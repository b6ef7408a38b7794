import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup

from hope_core import get_variant
from hope_core.modeling import load, variant_of
from pipelines.engine import Artifact, LocalRunner, Store
from pipelines.finetune import Lora, finetune_stage
from pipelines.finetune.trainer import answer_loss
from tests.pipelines import world


def test_training_the_same_trial_twice_gives_the_same_weights_bit_for_bit(
    trial: dict[str, Artifact], tmp_path: Path
) -> None:
    again = world.run(tmp_path, world.trained(tmp_path)[:1])["finetune"]
    first, second = (load_file(a.path / "checkpoint" / "model.safetensors") for a in (trial["finetune"], again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_variants_see_the_same_rows_and_start_from_the_same_weights(tmp_path: Path) -> None:
    recipe = dataclasses.replace(world.RECIPE, steps=1, lr=1e-30)
    dataset, frames = world.data_stages(tmp_path)
    stages = [
        finetune_stage(get_variant(name), world.MODEL, recipe, 0, dataset=dataset, frames=frames, group=name)
        for name in ("m_rope", "hope")
    ]
    artifacts = world.run(tmp_path, stages)
    m_rope, hope = (artifacts[stage.fingerprint] for stage in stages)
    weights = [load_file(a.path / "checkpoint" / "model.safetensors") for a in (m_rope, hope)]
    assert all(torch.allclose(weights[0][key], weights[1][key], rtol=0, atol=1e-20) for key in weights[0])
    assert m_rope.result["samples_sha256"] == hope.result["samples_sha256"]
    assert m_rope.result["position_ids_sha256"] != hope.result["position_ids_sha256"]


def test_a_checkpoint_knows_the_variant_it_was_trained_with(trial: dict[str, Artifact]) -> None:
    assert variant_of(load(trial["finetune"].path / "checkpoint")) == get_variant("hope")


def test_dynamic_scaling_draws_from_its_choices_and_the_draws_are_recorded(trial: dict[str, Artifact]) -> None:
    drawn = trial["finetune"].result["drawn_scales"]
    assert set(map(float, drawn)) <= {0.5, 0.75, 1.0, 1.25, 1.5}
    assert sum(drawn.values()) == world.RECIPE.steps * world.RECIPE.batch_size
    assert len(drawn) > 1


def test_the_history_has_a_line_per_step_with_the_recipes_learning_rate(trial: dict[str, Artifact]) -> None:
    lines = [json.loads(line) for line in (trial["finetune"].path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(world.RECIPE.steps))
    assert [line["lr"] for line in lines] == [
        world.RECIPE.lr_at(step, world.RECIPE.steps) for step in range(world.RECIPE.steps)
    ]


def test_too_few_samples_for_a_batch_fail_with_the_remedy(tmp_path: Path) -> None:
    recipe = dataclasses.replace(world.RECIPE, batch_size=64)
    dataset, frames = world.data_stages(tmp_path)
    stage = finetune_stage(get_variant("m_rope"), world.MODEL, recipe, 0, dataset=dataset, frames=frames, group="g")
    summary = LocalRunner(Store(tmp_path / "store")).run([stage])
    ((_, failure),) = summary.failed
    assert "48 samples give no batch of 64 rows" in failure.error
    assert "Traceback" in failure.traceback


def test_the_loss_counts_answers_only() -> None:
    logits = torch.zeros(1, 4, 5)
    logits[0, 1, 3] = 50.0
    labels = torch.tensor([[-100, 3, -100, -100]])
    loss, accuracy = answer_loss(logits, labels)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert accuracy.item() == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, r"recipe\.steps is 0"), ({"warmup_steps": 9}, r"recipe\.warmup_steps is 9; allowed is 0 to")],
)
def test_a_senseless_recipe_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(world.RECIPE, **change)


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_its_floor() -> None:
    recipe = dataclasses.replace(world.RECIPE, steps=100, warmup_steps=10, final_lr_share=0.1)
    rates = [recipe.lr_at(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(recipe.lr, rel=0.03)
    assert rates.index(max(rates)) == 9
    assert rates[-1] == pytest.approx(0.1 * recipe.lr, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1}, "give one of the two"),
        ({"warmup_share": 0.1}, "give one of the two"),
        ({"steps": None, "epochs": 1}, "equal_lengths leaves rows out"),
        ({"lora": Lora(2, 4, 0.0, ("q_proj",))}, "leaves the vision tower frozen"),
    ],
)
def test_a_recipe_that_says_two_things_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(world.RECIPE, **change)


def test_after_the_warm_up_the_cosine_is_that_of_transformers() -> None:
    recipe = dataclasses.replace(
        world.RECIPE, warmup_steps=None, warmup_share=0.1, cosine_after_warmup=True, final_lr_share=0.0
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=100)
    theirs = []
    for _ in range(100):
        optimizer.step()
        schedule.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    # Theirs begins at 0; ours, from the first step on, at what theirs has after it.
    ours = [recipe.lr_at(step, 100) for step in range(100)]
    assert ours[:10] == pytest.approx(theirs[:10])
    assert ours[11:] == pytest.approx(theirs[10:99])
