"""``python e2e/cluster COMMAND``: progress on standard error, results (the kubeconfig's path) on standard output."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import binaries, images, packages
from .cluster import Cluster
from .errors import ClusterError
from .layout import NODES, default_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 1 with one line why."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs beneath, too
    try:
        COMMANDS[options.command](Cluster(options.state.absolute()), options)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; `python e2e/cluster down` removes what had started", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python e2e/cluster", description="A real Kubernetes on this machine.")
    parser.add_argument("command", choices=COMMANDS, help="; ".join(f"{k}: {v.__doc__}" for k, v in COMMANDS.items()))
    parser.add_argument("--state", type=Path, default=default_state(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--nodes", type=int, default=len(NODES), choices=range(len(NODES) + 1), help="for up")
    return parser


def _up(cluster: Cluster, options: argparse.Namespace) -> None:
    """start it (about 20 s)"""
    print(cluster.up(NODES[: options.nodes]))


def _down(cluster: Cluster, _: argparse.Namespace) -> None:
    """end it, leaving nothing"""
    cluster.down()


def _status(cluster: Cluster, _: argparse.Namespace) -> None:
    """what runs"""
    print("\n".join(cluster.status()) or "nothing runs")


def _packages(_: Cluster, __: argparse.Namespace) -> None:
    """system packages only"""
    packages.ensure()


def _build(_: Cluster, __: argparse.Namespace) -> None:
    """packages, binaries and base image only"""
    packages.ensure()
    binaries.ensure()
    images.ensure_base()


def _images(cluster: Cluster, _: argparse.Namespace) -> None:
    """build the Dockerfile's targets and import them into the running nodes"""
    packages.ensure()
    built = images.build()
    images.load(cluster.layout, [spec.name for spec in cluster.nodes], built.values())
    print("\n".join(built.values()))


def _kubeconfig(cluster: Cluster, _: argparse.Namespace) -> None:
    """print its path"""
    if not cluster.running:
        raise ClusterError(f"no cluster runs in {cluster.state}; `python e2e/cluster up` starts one")
    print(cluster.layout.kubeconfig)


COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "packages": _packages,
    "build": _build,
    "images": _images,
    "kubeconfig": _kubeconfig,
}
