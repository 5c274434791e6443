"""What the package needs of a model, whichever TransformerLens and transformers it runs on."""
