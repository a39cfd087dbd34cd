"""The names of the tiers and of the domains, known to everybody."""

TIERS = ("fast", "medium", "heavy", "code", "math", "reasoning")
GENERAL_TIERS = TIERS[:3]  # from the smallest upwards
DOMAINS = ("general", *TIERS[3:])  # what a question is about
