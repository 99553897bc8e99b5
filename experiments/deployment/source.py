"""Source: the network that export and measure work on, and where they write."""

from pathlib import Path

from experiments.config.export import BEST, Chosen
from experiments.config.parameters import AUTO
from experiments.config.predict import LAST
from experiments.deployment.formats import Request
from experiments.rounds.network import Network, data_of
from experiments.tracking import server
from experiments.tracking.networks import (
    best_round,
    data_root_of,
    folder_name,
    is_run_id,
    load_network,
)
from pruning.sizes import sparsity


def check_source(run: str) -> str | None:
    """Check that a run's store answers; returns the run that `mlflow run` opened, if any."""
    if is_run_id(run):
        server.check_tracking()
    return server.attached_run()


def request_of(config: Chosen) -> Request:
    """The network that a config names, with its data.

    Raises:
        ValueError: If the run, its network or its data cannot be read.
    """
    if Path(config.run).is_file():
        _check_whole(load_network(config.run), config.run)
    number = best_round(config.run, config.sparsity) if config.round == BEST else config.number
    network = load_network(config.run, number)
    _check_whole(network, config.run)
    root = data_root_of(config.run) if config.data_root == AUTO else config.data_root
    return Request(config, network, data_of(network, root))


def _check_whole(network: Network, run: str) -> None:
    if network.spec.compact or "config" not in network.metadata:
        raise ValueError(f"{run} is an exported network: name its run or its checkpoint")


def folder_of(parent: str, run: str, out: str, number: int) -> Path:
    """The output folder."""
    return Path(parent, f"{folder_name(run)}-round_{number:02d}") if out == AUTO else Path(out)


def chosen_text(config: Chosen, network: Network) -> str:
    """Which network was chosen, in words."""
    which = f"{config.round} round" if config.round in (BEST, LAST) else "round"
    least = f" with a sparsity of at least {config.sparsity:g}" if config.sparsity else ""
    return f"{which}{least}: {network.round}, {100 * sparsity(network.masks):.2f}% pruned"
