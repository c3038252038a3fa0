"""Circuit discovery beside its peers: EAP-IG through TransformerLens, and one hooked forward a head."""
