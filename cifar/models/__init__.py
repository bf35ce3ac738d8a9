"""Exported versions: manifests, registry, rollout, engines, prediction."""
