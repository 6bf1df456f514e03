"""From what the user asked for to Kubernetes objects, and back: pure functions and raw dictionaries."""

from __future__ import annotations

from .objects import (
    bundle_config_map,
    claims,
    code,
    headless_service,
    job,
    kept,
    owner_reference,
    secret,
    user_secrets,
)
from .plan import Plan, default_image, effective, spec_hash
from .reading import ServiceFields, newest, read_code, read_service

__all__ = [
    "Plan",
    "ServiceFields",
    "bundle_config_map",
    "claims",
    "code",
    "default_image",
    "effective",
    "headless_service",
    "job",
    "kept",
    "newest",
    "owner_reference",
    "read_code",
    "read_service",
    "secret",
    "spec_hash",
    "user_secrets",
]
