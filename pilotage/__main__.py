"""`python -m pilotage`, which launchers of several processes want: `accelerate launch -m pilotage score ...`"""

from .cli.main import main

main()
