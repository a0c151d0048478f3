"""Whatever bytes an attacker may plant: for hypothesis in every run, for atheris by scripts/fuzz."""
