"""A short text of many kinds, written for this package: enough to tell a model from a broken one.

It is no benchmark: differences of a few hundredths of a bit per byte say nothing about quality.
"""

from __future__ import annotations

SHORT_TEXT: tuple[str, ...] = (
    (
        "The ferry was late again. Marta sat on the stone wall above the harbour, peeled an "
        "orange, and counted the boats that came back before the rain. Her brother had promised to "
        "bring the letters on Tuesday, and it was now Friday evening. When the light on the pier "
        "went on, she saw the grey hull turn around the point, slowly, as if it had all the time "
        "in the world.\n\n"
        '"You could have telephoned," she said when he came up the steps.\n\n'
        '"I could have," he answered, "but then you would not have waited for me."'
    ),
    (
        "Water boils at a lower temperature on a mountain than at the coast, because the air above "
        "it presses less. That is why rice takes longer to cook in a high village: the water "
        "cannot get as hot before it turns to steam. A pressure cooker does the opposite. Its lid "
        "keeps the steam in, the pressure rises, and so does the temperature at which the water "
        "boils."
    ),
    (
        "Revenue for the third quarter was $412.6 million, an increase of 8% over the same period "
        "of the previous year. Gross margin fell from 41.2% to 39.8%, mainly because of higher "
        "freight costs and a stronger dollar. The company ended the quarter with cash and cash "
        "equivalents of $1.1 billion and repurchased 2.3 million shares. Management expects "
        "capital expenditures of about $90 million for the full year and does not plan to change "
        "the dividend."
    ),
    (
        "def mean(values):\n"
        '    """The average of a list of numbers; an empty list has none."""\n'
        "    if not values:\n"
        '        raise ValueError("mean of an empty list")\n'
        "    total = 0.0\n"
        "    for value in values:\n"
        "        total += value\n"
        "    return total / len(values)\n"
    ),
    (
        "Question: A train leaves at 9:15 and arrives at 11:45. How long does the journey take?\n"
        "Answer: From 9:15 to 11:15 are two hours, and from 11:15 to 11:45 another thirty minutes. "
        "The journey takes two and a half hours.\n\n"
        "Question: What is the capital of France, and on which river does it lie?\n"
        "Answer: The capital of France is Paris. It lies on the Seine."
    ),
    (
        "The tenant shall pay the rent in advance on the first day of each month. If a payment is "
        "more than ten days late, the landlord may charge interest at the rate permitted by law. "
        "Either party may end this agreement by giving the other sixty days' written notice. "
        "Repairs that become necessary through ordinary use are made by the landlord at his own "
        "expense."
    ),
)
"""Documents: a story, an explanation, a quarterly report, code, questions, a contract."""
