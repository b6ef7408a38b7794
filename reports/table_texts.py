"""A report's tables as text: LaTeX, and plain for the terminal. HTML and Markdown templates walk the same cells."""

import pandas as pd

from reports.results import StudyResults
from reports.tables import AccuracyTable, TableCell, accuracy_tables
from reports.verdicts import headline_rule


def latex(table: AccuracyTable) -> str:
    """A booktabs table; needs the packages booktabs and amssymb."""
    marks = {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "○": r"$\circ$"}
    marks |= {"△": r"$\vartriangle$", "▽": r"$\triangledown$"}
    heads = " & ".join(["Variant", "Scale", *(tex(first.replace("×", "x")) for first, _ in table.heads)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(table.rule_title)}. {tex(table.caption)}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.heads)}}}",
        r"\toprule",
        rf"{heads} \\",
        r"\midrule",
    ]
    for row in table.rows:
        upper, lower = [tex(row.label), tex(row.scales)], ["", ""]
        for cell in row.cells:
            if cell is None:
                upper.append("--")
                lower.append("")
                continue
            value = rf"\textbf{{{cell.accuracy}}}" if cell.best else cell.accuracy
            upper.append(f"{value} {marks.get(cell.mark, '')}".rstrip())
            shift = rf" {cell.difference}".replace("−", "$-$") if cell.difference else ""
            lower.append(rf"{{\scriptsize [{cell.interval.replace('–', ', ')}]{shift}}}")
        lines += [" & ".join(upper) + r" \\", " & ".join(lower) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text)


def summary_table(results: StudyResults, grid: pd.DataFrame) -> str:
    """Plain text for the terminal: variant x context at the headline scale rule, one block per benchmark."""
    rule = headline_rule(results)
    blocks = []
    for table in accuracy_tables(results, grid, [rule]):
        rows = [["variant", "scale", *(f"{first} ({second})" for first, second in table.heads)]]
        for row in table.rows:
            name = f"{row.variant} (baseline)" if row.baseline else row.variant
            rows.append([name, row.scales, *(plain_cell(cell) for cell in row.cells)])
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append("\n".join([f"{table.title}, {table.rule_title.lower()}", *lines]))
    legend = (
        f"Accuracy in per cent [95 % interval] and difference to {results.baseline} in points: "
        "▲ better, ▼ worse, ○ cannot tell (Holm over the grid); △ ▽ only without that correction."
    )
    return "\n\n".join([*blocks, legend])


def plain_cell(cell: TableCell | None) -> str:
    if cell is None:
        return "-"
    shift = f" {cell.difference} {cell.mark}" if cell.difference else ""
    return f"{cell.accuracy} [{cell.interval}]{shift}{f' ({cell.incomplete})' if cell.incomplete else ''}"
