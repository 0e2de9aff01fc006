"""python -m invdiff"""

from invdiff.cli import main

main()
