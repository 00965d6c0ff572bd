"""``moorage serve``: the engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage._lib.imports import collector_paused, without_certificates
from moorage.cli.engine_location import given_socket, location_options, serve_options
from moorage.cli.parameters import SIZE, runtime_option
from moorage.cli.terminal import warn
from moorage.location import locate

if TYPE_CHECKING:
    from moorage.engine.installation import Registries


def _registries(
    policy: Path | None,
    insecure_registry: tuple[str, ...],
    registry_mirror: tuple[str, ...],
    certs_dir: tuple[Path, ...],
) -> "Registries":
    from moorage.engine.installation import Registries
    from moorage.plugins import parse_policy
    from moorage.registry.hosts import Options

    options = Options(insecure_registry, registry_mirror, certs_dir)
    return Registries(options, parse_policy(policy.read_bytes()) if policy is not None else None)


def _check_address(_: click.Context, __: click.Parameter, value: str) -> str:
    if value:
        from moorage.ui.address import parse_listen

        parse_listen(value)
    return value


def _with_warning(policy: Path | None) -> Path | None:
    if policy is not None:
        warn(
            "serve --policy is now --grants, and MOORAGE_POLICY MOORAGE_GRANTS; the old names go with the next release"
        )
    return policy


@click.command(
    name="serve",
    help="Run the engine until SIGTERM or Ctrl-C. Plugins keep running, and the next engine finds them. The API "
    "listens on moorage.sock in the run-time directory, or on --host.",
)
@location_options
@click.option("--group", metavar="GROUP", envvar="MOORAGE_GROUP", help="Group allowed to use the API, besides root.")
@click.option(
    "--insecure-registry",
    metavar="HOST[:PORT]",
    multiple=True,
    help="Registry, or network of registries, to use without verified TLS.",
)
@click.option("--registry-mirror", metavar="URL", multiple=True, help="Mirror of docker.io, as a URL; may be repeated.")
@click.option(
    "--certs-dir",
    type=click.Path(path_type=Path),
    multiple=True,
    default=("/etc/moorage/certs.d", "/etc/docker/certs.d"),
    show_default=True,
    help="Directory with HOST[:PORT]/*.crt, *.cert and *.key of registries; may be repeated.",
)
@click.option(
    "--grants",
    type=click.Path(path_type=Path),
    envvar="MOORAGE_GRANTS",
    help="File with privileges that may be granted without asking, and trusted keys.",
)
@click.option("--policy", type=click.Path(path_type=Path), envvar="MOORAGE_POLICY", hidden=True)
@click.option(
    "--live-restore/--no-live-restore",
    envvar="MOORAGE_LIVE_RESTORE",
    default=True,
    help="Keep plugins running when the engine stops, or stop them and containerd.  [default: keep]",
)
@click.option(
    "--shim",
    type=click.Choice(["each", "shared"]),
    envvar="MOORAGE_SHIM",
    default="each",
    show_default=True,
    help="A shim for each plugin, or one for all, which needs less memory; if it is killed, all plugins are.",
)
@runtime_option
@click.option(
    "--cgroup-driver",
    type=click.Choice(["auto", "systemd", "cgroupfs"]),
    envvar="MOORAGE_CGROUP_DRIVER",
    default="auto",
    show_default=True,
    help="Who creates the control groups of plugins: systemd (scopes in moorage.slice) or the runtime; auto is systemd "
    "where it is process 1, with control groups version 2.",
)
@click.option(
    "--default-capabilities",
    type=click.Choice(["docker", "minimal"]),
    envvar="MOORAGE_DEFAULT_CAPABILITIES",
    help="Default capabilities of plugins, besides those that they request.  [default: docker]",
)
@click.option(
    "--default-pids",
    metavar="N",
    type=click.IntRange(min=0),
    envvar="MOORAGE_DEFAULT_PIDS",
    help="Default limit of processes and threads of a plugin; 0 for no limit.  [default: 2048]",
)
@click.option(
    "--default-memory",
    type=SIZE,
    envvar="MOORAGE_DEFAULT_MEMORY",
    help="Default limit of memory of a plugin, as in 256m.  [default: no limit]",
)
@click.option(
    "--default-cpus",
    metavar="NUMBER",
    type=click.FloatRange(min=0),
    envvar="MOORAGE_DEFAULT_CPUS",
    help="Default limit of processors of a plugin, as in 0.5.  [default: no limit]",
)
@click.option(
    "--publish-directory",
    type=click.Path(path_type=Path),
    envvar="MOORAGE_PUBLISH_DIRECTORY",
    default="/run/docker/plugins",
    show_default=True,
    help="Directory of the sockets of published plugins; dockerd finds them in the default.",
)
@click.option(
    "--podman-config",
    type=click.Path(path_type=Path),
    envvar="MOORAGE_PODMAN_CONFIG",
    default="/etc/containers/containers.conf.d/50-moorage.conf",
    show_default=True,
    help="File that makes podman know the published volume drivers.",
)
@click.option(
    "--metrics-address",
    metavar="HOST:PORT",
    envvar="MOORAGE_METRICS_ADDRESS",
    help="Address of a listener for Prometheus; for access from other hosts, HOST must be an IP address.",
)
@click.option(
    "--ui",
    metavar="HOST:PORT",
    envvar="MOORAGE_UI",
    default="",
    callback=_check_address,
    help="Address of a page in the browser, of this machine only; its token is in the file ui-token of the data "
    "directory.",
)
def command(
    root: Path | None,
    exec_root: Path | None,
    namespace: str | None,
    containerd: str | None,
    grants: Path | None,
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

    with collector_paused(), without_certificates():
        import anyio

        from moorage.daemon import run_engine
        from moorage.plugins import Confinement, check_confinement

    steps = logging.getLogger("moorage")
    steps.setLevel(min(logging.INFO, steps.getEffectiveLevel()))
    old = _with_warning(policy)
    # --host says where to listen; without it the socket is in the run-time directory, wherever that is
    location, socket = locate(root, exec_root), given_socket()
    more["registries"] = _registries(grants or old, insecure_registry, registry_mirror, certs_dir)
    more["confinement"] = Confinement(
        capabilities=default_capabilities, pids=default_pids, memory_bytes=default_memory, cpus=default_cpus
    )
    check_confinement(more["confinement"])
    options = serve_options(location, socket, namespace, containerd, **more)
    return anyio.run(run_engine, options, backend_options={"use_uvloop": True})
