"""``moorage install``: a plugin from a registry."""

import click

from moorage import errors
from moorage.cli.consent import agree, grant_option
from moorage.cli.context import engine_client, json_option, print_name, publish_new
from moorage.cli.parameters import OptionalValueCommand, label_option, publish_option, read_secret
from moorage.cli.progress import quiet_option, report_interruption, show_progress
from moorage.cli.references import check_reference, registry_auth


@click.command(
    name="install",
    cls=OptionalValueCommand,
    help="Install a plugin from a registry, with settings NAME=VALUE, and enable it. The privileges that it requests "
    "are shown first. If the pull fails or a setting is invalid, nothing is installed.",
)
@click.argument("reference")
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--alias", metavar="NAME", default="", help="Local name for the plugin.")
@click.option("--disable", "leave_disabled", is_flag=True, help="Do not enable the plugin on install.")
@grant_option
@click.option("--ensure", is_flag=True, help="Succeed if already installed from this reference with these settings.")
@click.option("--secret", "secrets", metavar="NAME=@FILE", multiple=True, help="A setting that is never shown again.")
@label_option("Set a label on the plugin.")
@publish_option
@quiet_option
@json_option
def command(
    reference: str,
    assignments: tuple[str, ...],
    alias: str,
    leave_disabled: bool,
    grant_all: bool,
    ensure: bool,
    secrets: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    publish: str | None,
    quiet: bool,
) -> None:
    """Install, and enable."""
    from msgspec.structs import asdict

    from moorage.api.schema.packages import InstallRequest, TermsRequest
    from moorage.plugins import local_name, parse_reference

    check_reference(reference)
    client, auth = engine_client(), registry_auth(reference)
    local = local_name(alias) if alias else parse_reference(reference).local_name
    terms = TermsRequest([], list(assignments), [read_secret(each) for each in secrets])
    with report_interruption("nothing was installed"):
        if not (ensure and _is_installed(local)):
            settings = TermsRequest(settings=terms.settings, secrets=terms.secrets)
            review = client.request_privileges(reference, "", settings, auth)
            terms = agree(local, [], review, settings, grant_all=grant_all)
        request = InstallRequest(**asdict(terms), labels=dict(labels))
        with client.pull(reference, alias, request, auth, once=ensure) as progress:
            show_progress(progress, quiet=quiet)
    if publish is not None:
        publish_new(progress.name, publish, "installed")
    if not leave_disabled and not client.inspect(progress.name).enabled:
        _enable(progress.name)
    print_name(progress.name)


def _enable(name: str) -> None:
    try:
        with report_interruption(f"plugin {name} is installed, and may not be enabled"):
            engine_client().enable(name)
    except errors.MoorageError as error:
        raise type(error)(
            f"plugin {name} is installed, but cannot be enabled: {error}; after fixing that, run: moorage enable {name}"
        ) from error


def _is_installed(name: str) -> bool:
    try:
        return engine_client().inspect(name).name == name
    except errors.NotFound:
        return False
