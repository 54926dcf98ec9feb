"""What tests build with: small problems, chains, models, checkouts and stand-ins. No tests here."""
