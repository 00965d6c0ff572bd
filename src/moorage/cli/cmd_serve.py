"""``moorage serve`` and ``moorage down``: the engine, and its end."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage._lib.importing import importing, without_certificates
from moorage.cli.limits import SIZE
from moorage.cli.target import given_socket, locate_engine
from moorage.location import locate

if TYPE_CHECKING:
    from moorage.engine.packages import Registries
    from moorage.location import Location
    from moorage.serving import ServeOptions


def _places(command: Callable[..., Any]) -> Callable[..., Any]:
    path = click.Path(path_type=Path)
    for option in (
        click.option("--root", type=path, envvar="MOORAGE_ROOT", help="Data directory.  [default: /var/lib/moorage]"),
        click.option(
            "--exec-root",
            type=path,
            envvar="MOORAGE_EXEC_ROOT",
            help="Directory of run-time files.  [default: the recorded one, or /run/moorage]",
        ),
        click.option(
            "--namespace", help="Namespace in containerd; recorded at the first start.  [default: plugins.moby]"
        ),
        click.option(
            "--containerd",
            envvar="MOORAGE_CONTAINERD",
            help="private (one of our own, the default), system, or a socket; settled at the first start.",
        ),
    ):
        command = option(command)
    return command


def _options(
    location: "Location", socket: Path | None, namespace: str | None, containerd: str | None, **more: Any
) -> "ServeOptions":
    """``more``: other fields of the options, by their names."""
    from moorage.serving import ServeOptions

    return ServeOptions(location.root, location.exec_root, socket, namespace, containerd, **more)


def _registries(
    policy: Path | None,
    insecure_registry: tuple[str, ...],
    registry_mirror: tuple[str, ...],
    certs_dir: tuple[Path, ...],
) -> "Registries":
    from moorage.distribution.hosts import Options
    from moorage.engine.packages import Registries
    from moorage.plugins import parse_policy

    options = Options(insecure_registry, registry_mirror, certs_dir)
    return Registries(options, parse_policy(policy.read_bytes()) if policy is not None else None)


@click.command(
    name="serve",
    help="Run the engine until SIGTERM or Ctrl-C; plugins go on running then, and are found again. The API listens on "
    "moorage.sock in the run-time directory, or where --host says.",
)
@_places
@click.option("--group", envvar="MOORAGE_GROUP", help="Whose members may use the API, besides root.")
@click.option("--insecure-registry", multiple=True, help="Host or network that may be spoken to without checked TLS.")
@click.option("--registry-mirror", multiple=True, help="URL that is asked before docker.io; may be given again.")
@click.option(
    "--certs-dir",
    type=click.Path(path_type=Path),
    multiple=True,
    default=("/etc/moorage/certs.d", "/etc/docker/certs.d"),
    show_default=True,
    help="Directory with HOST[:PORT]/*.crt, *.cert and *.key of registries; may be given again.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    envvar="MOORAGE_POLICY",
    help="File that says what plugins may be granted with nobody there to ask.",
)
@click.option(
    "--live-restore/--no-live-restore",
    envvar="MOORAGE_LIVE_RESTORE",
    default=True,
    help="Whether plugins go on running when the engine ends (the default), or end with it, and containerd too.",
)
@click.option(
    "--shim",
    type=click.Choice(["each", "shared"]),
    envvar="MOORAGE_SHIM",
    default="each",
    show_default=True,
    help="A shim for each plugin, or one for all that are started from now on, which takes less memory; if that is "
    "killed, all end with it.",
)
@click.option(
    "--default-capabilities",
    type=click.Choice(["docker", "minimal"]),
    envvar="MOORAGE_DEFAULT_CAPABILITIES",
    help="Capabilities of plugins whose policy does not say, besides those that they request (docker).",
)
@click.option(
    "--default-pids",
    type=click.IntRange(min=0),
    envvar="MOORAGE_DEFAULT_PIDS",
    help="Limit of processes of plugins whose policy does not say; 0 for no limit (2048).",
)
@click.option(
    "--default-memory",
    type=SIZE,
    envvar="MOORAGE_DEFAULT_MEMORY",
    help="Limit of memory of plugins whose policy does not say, as in 256m (no limit).",
)
@click.option(
    "--default-cpus",
    type=click.FloatRange(min=0),
    envvar="MOORAGE_DEFAULT_CPUS",
    help="Limit of processors of plugins whose policy does not say, as in 0.5 (no limit).",
)
@click.option(
    "--metrics-address",
    metavar="HOST:PORT",
    envvar="MOORAGE_METRICS_ADDRESS",
    help="Serve GET /metrics for Prometheus here, too; to be reached from other machines, HOST must be an address.",
)
def command(
    root: Path | None,
    exec_root: Path | None,
    namespace: str | None,
    containerd: str | None,
    policy: Path | None,
    insecure_registry: tuple[str, ...],
    registry_mirror: tuple[str, ...],
    certs_dir: tuple[Path, ...],
    default_capabilities: Any,
    default_pids: int | None,
    default_memory: int | None,
    default_cpus: float | None,
    **more: Any,
) -> int:
    """Serve; the exit status."""
    import logging

    with importing(), without_certificates():
        import anyio

        from moorage.plugins import Confinement, check_confinement
        from moorage.serving import run_engine

    logging.getLogger("moorage").setLevel(min(logging.INFO, logging.getLogger().level))
    registries = _registries(policy, insecure_registry, registry_mirror, certs_dir)
    defaults = Confinement(
        capabilities=default_capabilities, pids=default_pids, memory_bytes=default_memory, cpus=default_cpus
    )
    check_confinement(defaults)
    more |= {"registries": registries, "confinement": defaults}
    # --host says where to listen; without it the socket is in the run-time directory, wherever that is
    options = _options(locate(root, exec_root), given_socket(), namespace, containerd, **more)
    return anyio.run(run_engine, options, backend_options={"use_uvloop": True})


@click.command(
    name="down",
    help="Stop the engine, all its plugins at once, and its private containerd; only the data directory stays. Plugins "
    "that are enabled are started again at the next start. The engine is that of --root or --exec-root, else the "
    "one of --host.",
)
@_places
def down(root: Path | None, exec_root: Path | None, namespace: str | None, containerd: str | None) -> int:
    """Take everything down; the exit status."""
    with importing(), without_certificates():
        import anyio

        from moorage.serving import take_down

    options = _options(locate_engine(root, exec_root), None, namespace, containerd)
    return anyio.run(take_down, options, click.echo, backend_options={"use_uvloop": True})
