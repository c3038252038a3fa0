"""From the name of a domain in a configuration to the domain."""

from __future__ import annotations

from rlforget import domains
from rlforget.domains import Domain, HubDomain
from rlforget.training.config import SequenceConfig


def domain_named(config: SequenceConfig, spec: str) -> Domain:
    """Return one of the sequence's own domains, or what `rf.domains.get` knows.

    Raises:
        UnknownNameError, DomainFileError: There is no such domain, or its reward cannot be imported.
    """
    for given in config.domains:
        if given.name == spec:
            return HubDomain(**given.model_dump(exclude={"smoke"}))
    return domains.get(spec)
