"""Word problems: what happens, by the operation that it takes, and how the answer is put."""

PROBLEMS = [(op, *part.split(" > ")) for op, text in {
    "+": """
{n} has {a} {t} and buys {b} more. How many {t} does {n} have? > {n} has {r} {t}.
{n} has {a} {t} and gets {b} more. How many {t} does {n} have now? > {n} has {r} {t}.
{n} has {a} {t}. {m} gives {n} {b} {t}. How many {t} does {n} have? > {n} has {r} {t}.
If {n} has {a} {t} and finds {b} more, how many {t} are there? > {n} has {r} {t}.
{n} found {a} {t} on Monday and {b} on Tuesday. How many {t} in all? > {n} found {r} {t}.
{n} has {a} {t} and {m} has {b}. How many {t} do they have together? > They have {r} {t}.
There are {a} {t} in one box and {b} {t} in another. How many {t} are there? > There are {r} {t}.
{n} collected {a} {t} and then {b} more {t}. What is the total? > {n} collected {r} {t}.
There were {a} {t} on the table. {n} adds {b}. How many {t} are on the table? > There are {r} {t}.
{n} buys {a} {t} today and {b} {t} tomorrow. How many {t} is that? > {n} buys {r} {t}.
How many {t} does {n} have after getting {b} on top of {a}? > {n} has {r} {t}.
{n} won {b} {t} and already had {a}. How many {t} now? > {n} has {r} {t}.
A shop has {a} {t}. {b} new {t} arrive. How many {t} does the shop have? > The shop has {r} {t}.
{n} starts with {a} {t} and receives {b} {t} as a gift. Count the {t}. > {n} has {r} {t}.
""",
    "-": """
{n} has {a} {t} and gives {b} away. How many {t} are left? > {n} has {r} {t} left.
{n} has {a} {t} and loses {b}. How many {t} does {n} have now? > {n} has {r} {t} left.
{n} had {a} {t} and sold {b}. How many {t} remain? > {n} has {r} {t} left.
{n} has {a} {t}. {m} takes {b} of them. How many {t} does {n} have? > {n} has {r} {t} left.
If {n} has {a} {t} and eats {b}, how many {t} are left? > {n} has {r} {t} left.
There were {a} {t} on the table. {n} takes {b}. How many {t} are left? > There are {r} {t} left.
{n} had {a} {t} but {b} got lost. How many {t} are there still? > {n} has {r} {t} left.
A shop has {a} {t} and sells {b} of them. How many {t} are left? > The shop has {r} {t} left.
Of {a} {t}, {b} are broken. How many {t} are good? > {r} {t} are good.
{n} needs {a} {t} and has {b}. How many more {t} does {n} need? > {n} needs {r} more {t}.
{n} gave {m} {b} of {a} {t}. How many {t} did {n} keep? > {n} has {r} {t} left.
How many {t} does {n} still have after giving {b} of {a} {t} to {m}? > {n} has {r} {t} left.
{n} has {a} {t}, {m} has {b}. How many more {t} does {n} have? > {n} has {r} more {t}.
There are {a} {t}. Someone removes {b} {t}. How many remain? > There are {r} {t} left.
""",
    "*": """
{n} has {a} boxes with {b} {t} each. How many {t} does {n} have? > {n} has {r} {t}.
There are {a} bags with {b} {t} in each. How many {t} are there? > There are {r} {t}.
{n} buys {a} packs of {b} {t}. How many {t} is that? > {n} buys {r} {t}.
One box holds {b} {t}. How many {t} do {a} boxes hold? > There are {r} {t}.
{a} children have {b} {t} each. How many {t} do they have together? > They have {r} {t}.
If each of {a} friends brings {b} {t}, how many {t} are there? > There are {r} {t}.
{n} collects {b} {t} every day for {a} days. How many {t} does {n} collect? > {n} collects {r} {t}.
There are {a} rows of {b} {t}. How many {t} in all? > There are {r} {t}.
{n} makes {b} {t} an hour and works {a} hours. How many {t} does {n} make? > {n} makes {r} {t}.
A shop gets {a} crates, each with {b} {t}. How many {t} is that? > There are {r} {t}.
{n} gives {b} {t} to each of {a} people. How many {t} does {n} give? > {n} gives {r} {t}.
How many {t} are in {a} bags if every bag has {b} {t}? > There are {r} {t}.
""",
    "/": """
{n} shares {a} {t} equally among {b} friends. How many {t} does each get? > Each gets {r} {t}.
{a} {t} are put into {b} boxes, the same number in each. How many {t} per box? \
> Each box has {r} {t}.
{n} has {a} {t} and {b} bags. How many {t} go in each bag? > Each bag has {r} {t}.
If {b} children share {a} {t}, how many {t} does each child get? > Each gets {r} {t}.
Split {a} {t} fairly between {b} people. How many {t} does each get? > Each gets {r} {t}.
{n} divides {a} {t} into {b} equal groups. How many {t} are in a group? > Each group has {r} {t}.
There are {a} {t} for {b} guests. How many {t} can each guest have? > Each gets {r} {t}.
{n} lays {a} {t} in {b} equal rows. How many {t} are in a row? > Each row has {r} {t}.
{n} and friends, {b} people in all, share {a} {t}. How many {t} for each? > Each gets {r} {t}.
How many {t} does each of {b} people get out of {a} {t}? > Each gets {r} {t}.
""",
}.items() for part in text.strip().splitlines()]
WHY = {"+": "more, so add", "-": "less, so subtract", "*": "so many times, so multiply",
       "/": "equal parts, so divide"}
