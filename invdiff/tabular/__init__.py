"""Tables with holes: `DiffusionImputer`, a scikit-learn transformer that fills what is missing and says how sure it is.

A row is an image of one pixel height, its missing entries the hole of a `Mask`. A leaf: nothing else imports it.
Needs scikit-learn (``pip install "invdiff[tabular]"``).
"""

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('invdiff.tabular needs scikit-learn: pip install "invdiff[tabular]"') from error

from invdiff.tabular.imputer import DiffusionImputer

__all__ = ["DiffusionImputer"]
