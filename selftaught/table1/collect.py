"""The tables of a folder of runs, computed anew from their scores."""

from pathlib import Path

import pandas as pd

from selftaught.files import write_atomic
from selftaught.table1 import own_rows
from selftaught.table1.figures import write_figures
from selftaught.table1.page import render_page
from selftaught.table1.results import cell_lines, read_results
from selftaught.table1.rows import build_rows, row_line


def collect(out: Path, against: str = "") -> Path:
    """Write table1.csv, cells.csv, the figures and table1.html from the runs that plan.csv names.

    Nothing is taken from an earlier collect: the same runs give the same bytes.

    Args:
        out: folder of the table.
        against: row that all others are compared with; "" = each with its own.

    Returns:
        Path of table1.html.

    Raises:
        InputError: no plan.csv, no such row, or runs of a column that cannot be compared.
        MachineError: the disk is full or the folder cannot be written.
    """
    cells = read_results(out)
    systems = own_rows.systems(out)
    rows = build_rows(cells, systems, against)
    tables = {"cells": cell_lines(cells), "table1": pd.DataFrame(map(row_line, rows))}
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.10g")
        write_atomic(out / f"{name}.csv", text)
    pictures, problems = write_figures(out, rows)
    write_atomic(out / "table1.html", render_page(out, rows, pictures, problems, systems))
    return out / "table1.html"
