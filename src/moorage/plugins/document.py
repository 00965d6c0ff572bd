"""A config as documents: the text that it came as, that of a package, and the form of the Engine API."""

from collections.abc import Sequence

from msgspec.structs import replace

from moorage.plugins._reader import decode, encode
from moorage.plugins.model import ArgsEntry, Config, DeviceEntry, EnvEntry, MountEntry, RootfsConfig

__all__ = ("as_it_came", "config_to_api", "device_to_api", "mount_to_api", "with_rootfs")


def as_it_came(config: Config) -> bytes:
    """The text that the config was read from, byte for byte."""
    return config.document or encode(config_to_api(config))


def with_rootfs(config: Config, diff_ids: Sequence[str]) -> Config:
    """The config of a package with these layers; all other fields of the document stay as they are."""
    document = decode(as_it_came(config), "config.json")
    fields = document if isinstance(document, dict) else {}
    made = {key: value for key, value in fields.items() if key.casefold() != "rootfs"}
    made["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    return replace(config, rootfs=RootfsConfig("layers", tuple(diff_ids)), document=encode(made))


def config_to_api(config: Config) -> dict[str, object]:
    """The config as the Engine API shows it: its spelling of the keys, every list a list, unknown fields left out."""
    interface: dict[str, object] = {"Socket": config.interface.socket}
    if config.interface.protocol_scheme:
        interface["ProtocolScheme"] = config.interface.protocol_scheme
    interface["Types"] = [each.text for each in config.interface.types]
    made: dict[str, object] = {
        "Args": _entry_to_api(config.args) | {"Value": list(config.args.value)},
        "Description": config.description,
        "DockerVersion": config.docker_version,
        "Documentation": config.documentation,
        "Entrypoint": list(config.entrypoint),
        "Env": [_entry_to_api(each) | {"Value": each.value} for each in config.env],
        "Interface": interface,
        "IpcHost": config.ipc_host,
        "Linux": {
            "AllowAllDevices": config.linux.allow_all_devices,
            "Capabilities": list(config.linux.capabilities),
            "Devices": [device_to_api(each) for each in config.linux.devices],
        },
        "Mounts": [mount_to_api(each) for each in config.mounts],
        "Network": {"Type": config.network.type},
        "PidHost": config.pid_host,
        "PropagatedMount": config.propagated_mount,
        "User": {key: value for key, value in (("UID", config.user.uid), ("GID", config.user.gid)) if value},
        "WorkDir": config.workdir,
    }
    if not config.docker_version:
        del made["DockerVersion"]
    if config.rootfs is not None:
        made["rootfs"] = {"type": config.rootfs.type, "diff_ids": list(config.rootfs.diff_ids)}
    return made


def mount_to_api(mount: MountEntry) -> dict[str, object]:
    """A mount as the Engine API shows it, in the config and in the settings."""
    return _entry_to_api(mount) | {
        "Source": mount.source,
        "Destination": mount.destination,
        "Type": mount.type,
        "Options": list(mount.options),
    }


def device_to_api(device: DeviceEntry) -> dict[str, object]:
    """A device as the Engine API shows it, in the config and in the settings."""
    return _entry_to_api(device) | {"Path": device.path}


def _entry_to_api(entry: MountEntry | EnvEntry | ArgsEntry | DeviceEntry) -> dict[str, object]:
    return {"Name": entry.name, "Description": entry.description, "Settable": list(entry.settable)}
