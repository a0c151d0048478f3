"""What somebody who can write to the vault may do to it, case by case."""
