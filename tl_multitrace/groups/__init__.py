"""Hook groups: the entries of a mask, and how a mask becomes TransformerLens hooks.

A hook group switches one or more *sites* together; a site is a hook name, an index along that hook's component axis and
the token positions it covers. One head is a group of one site. A window of ten MLP layers at one token is a group of
ten.

Where several groups cover the same site with mask values ``m1, m2, ...`` the source share is ``1 - (1-m1)(1-m2)...``,
which is what mixing one after the other gives; for binary masks: patched when any of them is on.

    act <- (1 - share) * act_running + share * act_source
"""

from tl_multitrace.groups.component import ATTENTION_INPUTS, SITES, Component, Position, Positions, SiteKind
from tl_multitrace.groups.hook_groups import HookGroups, axis_length, mask_of
from tl_multitrace.groups.kinds import attn_layers, heads, mib_groups, mlp_dims, mlps, neurons, residual
from tl_multitrace.groups.points import MissingError, Points

__all__ = [
    "ATTENTION_INPUTS",
    "SITES",
    "Component",
    "HookGroups",
    "MissingError",
    "Points",
    "Position",
    "Positions",
    "SiteKind",
    "attn_layers",
    "axis_length",
    "heads",
    "mask_of",
    "mib_groups",
    "mlp_dims",
    "mlps",
    "neurons",
    "residual",
]
