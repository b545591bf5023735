"""`python -m pilotage.cli`"""

from .main import main

main()
