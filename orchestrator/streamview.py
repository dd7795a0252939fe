"""The search for samples_per_query as people read it: a line a probe, and what to do with the number."""

from __future__ import annotations

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from orchestrator.campaign import EXIT_INVALID
from orchestrator.phrases import ms, plural
from orchestrator.stream_search import Found
from orchestrator.tables import plain_table

WORDS: dict[bool | None, str] = {True: "held", False: "did not hold"}


def show_search(found: Found, queries: int, terminal: Console) -> None:
    """Print the probes and the largest number that held."""
    largest = found.samples_per_query
    table = plain_table()
    for name in ("samples per query", "verdict", "p50 ms", "p99 ms", "interval ms"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for record in found.records:
        valid, latency = record.result.valid, record.result.percentiles_ms
        table.add_row(
            f"{record.settings['multi_stream_samples_per_query']:,}",
            Text(WORDS.get(valid, record.status), style="" if valid else "red"),
            *(ms(latency[p]) if p in latency else "–" for p in ("p50", "p99")),
            ms(1000 / record.settings["multi_stream_target_qps"]),
        )
    terminal.print(Rule(Text("samples per query"), style="dim"))
    terminal.print(table)
    if not largest:
        ended = found.exit_code == EXIT_INVALID
        terminal.print(Text("\nno number of samples held" if ended else "\nthe search did not end"))
        return
    terminal.print(
        Text(
            f"\nThe largest that held in {plural(queries, 'query')}: {largest:,} samples per query. "
            f"That is a hint, not a result: write `MultiStream: {{samples_per_query: {largest}}}` under "
            "loadgen, and `loadgrid run` it at full length."
        ),
        soft_wrap=True,
    )
