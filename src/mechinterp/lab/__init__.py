"""How the lab model is made: what it reads, the recipe that trains it, and what is measured on its card."""
