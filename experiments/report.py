"""Report: rebuild the page, tables and figures of a comparison from the tracking store alone.

mlflow run . -e report -P run=<id of a comparison>
"""

from pathlib import Path

from experiments.comparison import record
from experiments.comparison.report import make_report, report_text
from experiments.config.comparison import ReportConfig
from experiments.processes.terminal import print_line
from experiments.tracking import orphan, server


def rebuild_report(config: ReportConfig) -> Path:
    """Rebuild the report of a comparison, log it to its run, and return its folder.

    Raises:
        ValueError: If the run is not a finished comparison, or one of its runs or files is gone.
    """
    server.check_tracking()
    attached = server.attached_run()
    made = record.read_record(config.run)
    folder = make_report(config.run, made, config.out)
    if attached and attached != config.run:
        orphan.dispose(attached, config.run)
    print_line(report_text(folder))
    return folder
