"""Tables and figures, the public side: load a specification, plan its runs, build the table, write it.

For example::

    spec = load_spec("table2")
    runs = plan(spec, "smoke", seeds=3, store=store)      # what is cached, what is to run, what cannot run
    table = build_table(spec, store, "smoke", seeds=3)
    print(render(table, "md"))
    write_all(table, "results/tables")                    # table2-smoke.{md,csv,tex,html,json}

    figure = load_spec("figure-pfq")                      # a figure is a table that is also drawn
    write(figure, store, "smoke", "results/figures")      # figure-pfq-smoke.{svg,png,csv,md,...}
"""

from __future__ import annotations

from fractrain.report.build import build_table
from fractrain.report.figure_data import FigureData, Point, build_figure
from fractrain.report.grid import PlannedRun, plan, plan_text
from fractrain.report.output import text, write
from fractrain.report.render import FORMATS, render, write_all
from fractrain.report.sources import Sources, default_sources
from fractrain.report.spec import TableSpec, load_spec, table_names
from fractrain.report.values import Cell, Column, Row, Table

__all__ = [
    "FORMATS",
    "Cell",
    "Column",
    "FigureData",
    "PlannedRun",
    "Point",
    "Row",
    "Sources",
    "Table",
    "TableSpec",
    "build_figure",
    "build_table",
    "default_sources",
    "load_spec",
    "plan",
    "plan_text",
    "render",
    "table_names",
    "text",
    "write",
    "write_all",
]
