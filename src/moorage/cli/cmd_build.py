"""``moorage build``: a package from a directory."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.archives import write_archive
from moorage.cli.context import directories, is_json, json_option
from moorage.cli.terminal import print_json, say, warn

if TYPE_CHECKING:
    from moorage.oci.platforms import Platform
    from moorage.package_build.blob_store import BlobStore
    from moorage.package_build.build import BuildOptions, BuiltPackage, RegistryAccess
    from moorage.packages.directory import PluginDirectory

_EPOCH = "SOURCE_DATE_EPOCH"


@click.command(
    name="build",
    help="Build the package of a plugin from DIRECTORY (config.json beside rootfs/, whose files are put on a base), "
    "without an engine. The same files give the same digest; SOURCE_DATE_EPOCH sets their time.",
)
@click.argument("directory", type=click.Path(path_type=Path), shell_complete=directories)
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="[PLATFORM=]BASE",
    help="What the files are put on: the directory of a root file system, as debootstrap makes it, the directory of an "
    "OCI layout, or an image reference; may be given for each platform.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Platform, as linux/arm64; may be repeated, for one package with all of them.  [default: this machine's]",
)
@click.option("--name", metavar="NAME", help="Name of the plugin in the archive.  [default: the directory's]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write an archive for moorage load.")
@click.option("--push", "target", metavar="REFERENCE", help="Push it to a registry, all platforms as one tag.")
@click.option("--kit", is_flag=True, help="Add the kit at /plugin/moorage/kit, instead of one in the directory.")
@click.option("--insecure-registry", metavar="HOST[:PORT]", multiple=True, help="Registry to use without verified TLS.")
@json_option
def command(
    directory: Path,
    bases: tuple[str, ...],
    platforms: tuple[str, ...],
    name: str | None,
    output: Path | None,
    target: str | None,
    kit: bool,
    insecure_registry: tuple[str, ...],
) -> None:
    """Build."""
    if output is None and target is None:
        raise click.UsageError("give -o FILE, or --push REFERENCE, or both")
    import anyio

    from moorage.package_build.blob_store import BlobStore
    from moorage.package_build.build import BuildOptions
    from moorage.packages.directory import load_directory

    plugin = load_directory(directory, verb="build")
    for warning in plugin.parsed.warnings:
        warn(f"{plugin.path / 'config.json'}: {warning}")
    named = name or target or plugin.path.name
    options = BuildOptions(named, _platforms(platforms), _bases(bases), _epoch(), kit)
    with tempfile.TemporaryDirectory(prefix="moorage-build-", dir=os.environ.get("TMPDIR") or "/var/tmp") as scratch:
        store = BlobStore(Path(scratch))
        package = anyio.run(_build, plugin, options, store, target, insecure_registry)
        if output is not None:
            from moorage.package_build.publish import archive

            write_archive(output, archive(store, package))
    if is_json():
        made = {str(each.platform): each.digest for each in package.manifests}
        print_json({"Digest": package.root.digest, "Manifests": made})
    else:
        say(package.root.digest)


async def _build(
    plugin: "PluginDirectory",
    options: "BuildOptions",
    store: "BlobStore",
    target: str | None,
    insecure: tuple[str, ...],
) -> "BuiltPackage":
    from moorage.package_build.build import build_package
    from moorage.package_build.publish import push_built_package
    from moorage.plugins import parse_reference

    access = _access(insecure)
    package = await build_package(plugin, options, store, access)
    if target is not None:
        reference = parse_reference(target)
        async with access.open(reference, "push") as registry:
            await push_built_package(registry, store, package, reference)
    return package


def _access(insecure: tuple[str, ...]) -> "RegistryAccess":
    from moorage.package_build.build import RegistryAccess
    from moorage.registry.credentials import Credentials
    from moorage.registry.docker_config import DockerConfig, docker_config_path
    from moorage.registry.hosts import Options

    config = DockerConfig(docker_config_path(), environ=os.environ)
    certificates = (Path("/etc/moorage/certs.d"), Path("/etc/docker/certs.d"))

    async def credentials(host: str) -> Credentials:
        found = await config(host, "")
        if found.reason_absent:
            warn(f"{found.reason_absent}; continuing without credentials for {host}")
        return found

    return RegistryAccess(Options(insecure, (), certificates), credentials)


def _platforms(texts: tuple[str, ...]) -> "tuple[Platform, ...]":
    from moorage.packages.pull import LOCAL_PLATFORM

    return tuple(dict.fromkeys(map(_platform, texts))) or (LOCAL_PLATFORM,)


def _platform(text: str) -> "Platform":
    from moorage.oci.platforms import normalized

    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise click.BadParameter(f"{text!r} is not OS/ARCH[/VARIANT], as linux/arm64", param_hint="--platform")
    return normalized(*parts)


def _bases(texts: tuple[str, ...]) -> "dict[Platform | None, str]":
    found: dict[Platform | None, str] = {}
    for text in texts:
        before, equals, after = text.partition("=")
        key = _platform(before) if equals else None
        if key in found:
            raise click.BadParameter(f"two bases for {key or 'all platforms'}", param_hint="--base")
        found[key] = after if equals else text
    return found


def _epoch() -> int:
    text = os.environ.get(_EPOCH, "0")
    if not (text.isascii() and text.isdecimal()):
        raise errors.Invalid(f"cannot use {_EPOCH}: {text!r} is not a number of seconds since 1970")
    return int(text)
