"""Strips the scopes of training wrappers from the names in a state dict."""

import re
from collections.abc import Iterable

# Modules that wrap a network, or one of its layers, and have no arrays of their own.
_HOLDERS = r"(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
_NETWORK = r"^(model|net|network)\."  # attributes for the network in Lightning and other modules
_OWN_SCOPES = r"(conv1|bn1|layer\d+|fc|linear|features|classifier)\."  # of the supported networks
_COUNTER = r"(\w+\.)*n_averaged"  # of `torch.optim.swa_utils.AveragedModel`
_MAX_NESTING = 8


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Maps the names of a state dict to those of the network without training wrappers.

    Removed, in any order and nesting: `module` (DataParallel, averaged weights), `_orig_mod`
    (`torch.compile`) and similar wrappers anywhere; `model`, `net` and `network` at the start; and
    any other scope that contains all arrays, since no supported network is a single module. The
    counter of averaged weights is dropped.

    Args:
        names: the names of a state dict.

    Returns:
        The new names by the given ones; unchanged if two of them would become equal.
    """
    given = [name for name in names if not re.fullmatch(_COUNTER, name)]
    own = [re.sub(rf"\b{_HOLDERS}\.", "", name) for name in given]
    for _ in range(_MAX_NESTING):
        own = _without_common_scope([re.sub(_NETWORK, "", name) for name in own])
    return dict(zip(given, own if len(set(own)) == len(own) else given, strict=True))


def _without_common_scope(names: list[str]) -> list[str]:
    scopes = {re.split(r"(?<=\.)", name, maxsplit=1)[0] for name in names}
    is_wrapper = len(scopes) == 1 and re.fullmatch(rf"(?!{_OWN_SCOPES}).+\.", min(scopes))
    return [name.removeprefix(min(scopes)) for name in names] if is_wrapper else names
