"""``deepres degrade``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepres.cli.common import DataOption, default_out, keywords, resumable, say, table
from deepres.paper.options import DegradeOptions


@dataclass(frozen=True, kw_only=True)
class Degrade(DegradeOptions, DataOption):
    """Show the degradation problem: deeper plain networks train worse, residual ones do not."""

    out: Path | None = None  # folder for report.html and the runs; a folder used before is continued [runs/degrade-DATE]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.live import Board
        from deepres.paper.degradation import degrade
        from deepres.paper.degrade_page import degradation_page, degradation_table

        out = self.out or default_out("degrade")
        console = Console()
        board = Board(console, self.depths, self.seeds, self.epochs)
        with board, resumable(f"deepres degrade --out {out}"):
            findings = degrade(
                self.data,
                out=out,
                progress=board.update,
                **keywords(self, DegradeOptions),
            )
        console.print(table(degradation_table(findings).head, degradation_table(findings).rows))
        say("")
        for line in findings.summary():
            say(line)
        command = f"deepres degrade --data {self.data} --depths {' '.join(map(str, self.depths))} --epochs {self.epochs:g}"
        report = degradation_page(findings, f"Made by `{command} --seeds {self.seeds}` in {findings.seconds:.0f} s.").write(
            out / "report.html"
        )
        (out / "findings.json").write_text(findings.to_json())
        say(f"\nCurves and gradients: {report}")
        return 0
