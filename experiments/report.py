"""Report: a comparison as a page, tables and figures, made from the tracking store alone.

mlflow run . -e report -P run=<id of a comparison>
"""

from pathlib import Path

from experiments.comparison import record
from experiments.comparison.report import make_report, report_text
from experiments.config.comparison import ReportConfig
from experiments.processes.terminal import print_line
from experiments.tracking import orphan, server


def rebuild_report(config: ReportConfig) -> Path:
    """Make the report of a comparison anew, and log it to its run; the folder it is in.

    Raises:
        ValueError: If there is no such comparison, or something that it consists of is gone.
    """
    server.check_tracking()
    attached = server.attached_run()
    made = record.read_record(config.run)
    folder = make_report(config.run, made, config.out)
    if attached and attached != config.run:  # `mlflow run` opened it for nothing
        orphan.label(attached, config.run)
        orphan.delete_when_closed(attached)
    print_line(report_text(folder))
    return folder
