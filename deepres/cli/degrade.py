"""``deepres degrade``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepres.cli.common import default_out, resumable, say, table


@dataclass(frozen=True)
class Degrade:
    """Show the degradation problem: deeper plain networks train worse, residual ones do not."""

    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    depths: tuple[int, ...] = (20, 56)  # layers: two or more depths of 6n+2
    epochs: float = 10  # of each network
    seeds: int = 1  # how many times each network is trained
    out: Path | None = None  # where report.html and the runs go; a folder used before is continued [runs/degrade-DATE]
    speed: str = "float32-channels-last"  # how to compute; see `deepres train --help`
    size: int | None = None  # side of the input in pixels [the images' own, or 32]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.live import Board
        from deepres.paper.degradation import degrade, to_json
        from deepres.paper.degrade_page import degradation_page, degradation_table

        out = self.out or default_out("degrade")
        console = Console()
        board = Board(console, self.depths, self.seeds, self.epochs)
        with board, resumable(f"deepres degrade --out {out}"):
            findings = degrade(
                self.data,
                depths=self.depths,
                epochs=self.epochs,
                seeds=self.seeds,
                out=out,
                speed=self.speed,
                size=self.size,
                watch=board.update,
            )
        console.print(table(degradation_table(findings).head, degradation_table(findings).rows))
        say("")
        for line in findings.summary():
            say(line)
        command = f"deepres degrade --data {self.data} --depths {' '.join(map(str, self.depths))} --epochs {self.epochs:g}"
        report = degradation_page(findings, f"Made by `{command} --seeds {self.seeds}` in {findings.seconds:.0f} s.").write(
            out / "report.html"
        )
        (out / "findings.json").write_text(to_json(findings))
        say(f"\nCurves and gradients: {report}")
        return 0
