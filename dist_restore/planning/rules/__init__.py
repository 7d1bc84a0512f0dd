"""Rules: what a person says of names. TOML or Python -> `RuleSet`; patterns, their inverse, vocabularies.

rules = RuleSet.of("rules.toml")
"""
