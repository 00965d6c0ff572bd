"""What a plugin is: its config, what a user set, what it asks for, and the container it becomes. Pure, no I/O."""

from moorage._lib.values import CgroupDriver as CgroupDriver
from moorage.oci.reference import Reference as Reference
from moorage.oci.reference import local_name as local_name
from moorage.oci.reference import parse_reference as parse_reference
from moorage.plugins.confinement import BUILT_IN as BUILT_IN
from moorage.plugins.confinement import NO_CONFINEMENT as NO_CONFINEMENT
from moorage.plugins.confinement import Confinement as Confinement
from moorage.plugins.confinement import HostFeatures as HostFeatures
from moorage.plugins.confinement import check_confinement as check_confinement
from moorage.plugins.confinement import check_user_namespace as check_user_namespace
from moorage.plugins.confinement import confined_spec as confined_spec
from moorage.plugins.confinement import requested_capabilities as requested_capabilities
from moorage.plugins.confinement import resolve_confinement as resolve_confinement
from moorage.plugins.confinement import resources_of as resources_of
from moorage.plugins.confinement import widenings as widenings
from moorage.plugins.document import as_it_came as as_it_came
from moorage.plugins.document import config_to_api as config_to_api
from moorage.plugins.document import with_rootfs as with_rootfs
from moorage.plugins.labels import check_labels as check_labels
from moorage.plugins.labels import has_label as has_label
from moorage.plugins.model import Config as Config
from moorage.plugins.model import MountEntry as MountEntry
from moorage.plugins.model import ParsedConfig as ParsedConfig
from moorage.plugins.model import parse_config as parse_config
from moorage.plugins.policy import Policy as Policy
from moorage.plugins.policy import check_policy as check_policy
from moorage.plugins.policy import parse_policy as parse_policy
from moorage.plugins.privileges import Privilege as Privilege
from moorage.plugins.privileges import check_granted as check_granted
from moorage.plugins.privileges import compute_privileges as compute_privileges
from moorage.plugins.privileges import find_missing as find_missing
from moorage.plugins.privileges import find_named as find_named
from moorage.plugins.privileges import parse_privileges as parse_privileges
from moorage.plugins.privileges import privileges_to_api as privileges_to_api
from moorage.plugins.settings import NO_OVERRIDES as NO_OVERRIDES
from moorage.plugins.settings import Overrides as Overrides
from moorage.plugins.settings import Rebased as Rebased
from moorage.plugins.settings import Settings as Settings
from moorage.plugins.settings import apply_settings as apply_settings
from moorage.plugins.settings import effective_settings as effective_settings
from moorage.plugins.settings import masked as masked
from moorage.plugins.settings import merge_overrides as merge_overrides
from moorage.plugins.settings import rebase as rebase
from moorage.plugins.settings import settings_to_api as settings_to_api
from moorage.plugins.spec import GROUP_PARENTS as GROUP_PARENTS
from moorage.plugins.spec import DeviceNode as DeviceNode
from moorage.plugins.spec import HostPaths as HostPaths
from moorage.plugins.spec import Need as Need
from moorage.plugins.spec import Needs as Needs
from moorage.plugins.spec import build_spec as build_spec
from moorage.plugins.spec import cgroup_path as cgroup_path
from moorage.plugins.spec import container_of_group as container_of_group
from moorage.plugins.spec import control_group as control_group
from moorage.plugins.spec import needs as needs
from moorage.plugins.spec import socket_path as socket_path
from moorage.plugins.trust import TrustedKeys as TrustedKeys
from moorage.plugins.trust import TrustRule as TrustRule
from moorage.plugins.trust import repository_of as repository_of

__all__ = (
    "BUILT_IN",
    "GROUP_PARENTS",
    "NO_CONFINEMENT",
    "NO_OVERRIDES",
    "CgroupDriver",
    "Config",
    "Confinement",
    "DeviceNode",
    "HostFeatures",
    "HostPaths",
    "MountEntry",
    "Need",
    "Needs",
    "Overrides",
    "ParsedConfig",
    "Policy",
    "Privilege",
    "Rebased",
    "Reference",
    "Settings",
    "TrustRule",
    "TrustedKeys",
    "apply_settings",
    "as_it_came",
    "build_spec",
    "cgroup_path",
    "check_confinement",
    "check_granted",
    "check_labels",
    "check_policy",
    "check_user_namespace",
    "compute_privileges",
    "config_to_api",
    "confined_spec",
    "container_of_group",
    "control_group",
    "effective_settings",
    "find_missing",
    "find_named",
    "has_label",
    "local_name",
    "masked",
    "merge_overrides",
    "needs",
    "parse_config",
    "parse_policy",
    "parse_privileges",
    "parse_reference",
    "privileges_to_api",
    "rebase",
    "repository_of",
    "requested_capabilities",
    "resolve_confinement",
    "resources_of",
    "settings_to_api",
    "socket_path",
    "widenings",
    "with_rootfs",
)
