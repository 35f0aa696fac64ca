"""The ledger of quantitative claims: what a paper says, what a run measured, and the verdict.

A claim is stated before anything is measured: the paper's value, what its own model is expected to
give here, and what the same phenomenon would look like in the small lab model. A chapter records
one value a claim; the verdict follows from the expectation and nobody writes it by hand.

>>> CLAIMS["ioi"]["IOI-2"].statement
'the model prefers the indirect object to the subject'
"""

from mechinterp.claims.beside import beside
from mechinterp.claims.compare import Change, compare
from mechinterp.claims.expectations import Expectation, Includes, Range, SameSet, Size
from mechinterp.claims.ledger import Card, Ledger, Table
from mechinterp.claims.nulls import Chance, Either, Null
from mechinterp.claims.registry import CLAIMS, find_claim
from mechinterp.claims.results import Entry, Results, read_results, results_folder, write_results
from mechinterp.claims.scoreboard import scoreboard
from mechinterp.claims.statement import Claim, Revision
from mechinterp.claims.values import Names, Value

__all__ = [
    "CLAIMS",
    "Card",
    "Chance",
    "Change",
    "Claim",
    "Either",
    "Entry",
    "Expectation",
    "Includes",
    "Ledger",
    "Names",
    "Null",
    "Range",
    "Results",
    "Revision",
    "SameSet",
    "Size",
    "Table",
    "Value",
    "beside",
    "compare",
    "find_claim",
    "read_results",
    "results_folder",
    "scoreboard",
    "write_results",
]
