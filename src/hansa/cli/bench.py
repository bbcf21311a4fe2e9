"""``hansa bench``: what parts of Hansa cost on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hansa.cli.console import facts, heading, print_json, screen, sentence
from hansa.cli.options import AsJson

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure what parts of Hansa cost on this machine."""


@app.command(name="secagg")
def secagg(  # noqa: PLR0913 - options
    *,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="secagg-full, secagg-plus or oneshot-seeds.")
    ] = "secagg-full",
    clients: Annotated[int, typer.Option(min=3, metavar="N", help="Clients that take part.")] = 100,
    parameters: Annotated[int, typer.Option(min=1, metavar="D", help="Entries of each vector.")] = 100_000,
    dropout: Annotated[
        float, typer.Option(min=0, max=0.9, metavar="SHARE", help="Share of clients that drop out after key sharing.")
    ] = 0.1,
    neighbours: Annotated[
        int | None, typer.Option(metavar="K", help="secagg-plus: neighbours of a client. Default: the fewest that do.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(metavar="T", help="secagg-plus: shares that give a secret back. Default: with K.")
    ] = None,
    bits: Annotated[int, typer.Option(min=8, max=64, metavar="B", help="Bits of an entry.")] = 32,
    threads: Annotated[
        int, typer.Option(min=1, max=64, help="Threads of the server, and of decryptors. Default: a processor each.")
    ] = len(os.sched_getaffinity(0)),
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            writable=True,
            help="Also write what each machine makes durable to this disk, with fsync, and time that apart.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time a secure sum in this process: clients, server and decryptors without network and disk, and its exactness."""
    from hansa.cli.bench_secagg import ALL_FOR_REAL, Bench, NoSumError, Workload  # noqa: PLC0415 - cryptography, only if asked
    from hansa.secagg.task import SMALLEST  # noqa: PLC0415 - as above

    if clients - int(clients * dropout) < SMALLEST:
        raise typer.BadParameter(f"A sum has at least {SMALLEST} survivors; too few are left.", param_hint="--dropout")
    chosen, needed = _graph(protocol, clients, dropout, neighbours, threshold)
    work = Workload(
        protocol=_known(protocol), clients=clients, parameters=parameters, dropout=dropout, neighbours=chosen,
        threshold=needed, bits=bits, threads=threads, records=records,
    )  # fmt: skip
    try:
        answer = Bench(work).run()
    except NoSumError as error:
        raise typer.BadParameter(f"So many drop out that there is no sum: {error}.", param_hint="--dropout") from None
    answer["note"] = _note(answer, clients > ALL_FOR_REAL and protocol != "oneshot-seeds")
    _show(screen(), answer)
    if as_json:
        print_json(answer)


def _known(protocol: str) -> Any:
    known = ("secagg-full", "secagg-plus", "oneshot-seeds")
    if protocol not in known:
        raise typer.BadParameter(f"{protocol} is none of {', '.join(known)}.", param_hint="--protocol")
    return protocol


def _graph(
    protocol: str, clients: int, dropout: float, neighbours: int | None, threshold: int | None
) -> tuple[int, int]:
    """Return the neighbours and threshold of a sparse graph; none for other protocols."""
    from hansa.secagg.parameters import smallest_graph  # noqa: PLC0415 - only if asked

    if protocol != "secagg-plus":
        if neighbours is not None or threshold is not None:
            raise typer.BadParameter("Only secagg-plus has them.", param_hint="--neighbours, --threshold")
        return 0, 0
    if neighbours is None:
        found = smallest_graph(clients, corrupt=0.05, dropped=dropout)
        neighbours, least = found.neighbours, found.threshold
    else:
        least = 2 * neighbours // 3 + 1
    if neighbours < 2 or neighbours % 2 or neighbours >= clients:
        raise typer.BadParameter("it must be an even number from 2 on, below --clients.", param_hint="--neighbours")
    threshold = least if threshold is None else threshold
    if not 2 <= threshold <= neighbours + 1:
        raise typer.BadParameter("it must be from 2 to --neighbours + 1.", param_hint="--threshold")
    return neighbours, threshold


def _note(answer: dict[str, Any], sampled: bool) -> str:  # noqa: FBT001 - one caller
    note = "In one process, without network and disk; a client's times are medians over the clients that were timed."
    if sampled:
        note += (
            f" All clients advertise, share, consent and unmask; {answer['clients_timed']} mask for real. Of the"
            " others' pairs of masks those that cancel were left out; the server's work is whole."
        )
    return note


def _show(console: Console, answer: dict[str, Any]) -> None:
    pairs = [
        (name, str(answer[name])) for name in ("protocol", "clients", "survivors", "parameters", "bits", "threads")
    ]
    if answer["neighbours"]:
        pairs += [("neighbours, threshold", f"{answer['neighbours']}, {answer['threshold']}")]
    heading(console, "Secure sum")
    pairs.append(("processor time of the server, seconds", f"{answer['server_processor_seconds']:.3f}"))
    facts(console, [*pairs, ("sum", "exact" if answer["exact"] else "WRONG")])
    for title, name, unit in (
        ("A client, milliseconds", "client_ms", "{:.2f}"),
        ("The server, seconds", "server_seconds", "{:.3f}"),
        ("A decryptor, seconds", "decryptor_seconds", "{:.3f}"),
        ("Records on disk with fsync", "fsync", "{:.3f}"),
        ("Bytes up, a client", "bytes_up", "{:,.0f}"),
        ("Bytes down, a client", "bytes_down", "{:,.0f}"),
    ):
        if name in answer:
            heading(console, title)
            facts(console, [(part, unit.format(value)) for part, value in answer[name].items()])
    sentence(console, answer["note"], "dim")
