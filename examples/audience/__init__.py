"""How many users match any criteria (reach), and whether their tags can be believed (quality). See README.md."""
