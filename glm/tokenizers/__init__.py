"""The tokenizers of the GLM family: ``opening`` picks one for a folder, ``interface`` says what each of them can do."""
