"""Words that say something anywhere: what mail wants from its reader, and how people write who want nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mail.spam.wordlists import listed

CATEGORIES: dict[str, str] = {
    "money": """cash income earn earnings profit profits rich wealth wealthy dollars million millions billion debt debts loan loans mortgage
        refinance lender lenders rates approval approved credit bankrupt bankruptcy invest investment investors financial savings""",
    "offer": """free offer offers guarantee guaranteed bonus prize winner winners won gift discount discounts save cheap cheapest lowest
        price prices sale deal deals limited special exclusive promotion trial risk obligation refund instant instantly amazing incredible
        unlimited bargain best buy order orders now today hurry act wholesale brand quality""",
    "click": """click here visit website link below remove removed unsubscribe mailing reply receive future mailings opt optout list
        subscribed advertisement solicitation bulk emails""",
    "health": """viagra cialis levitra pills pill pharmacy pharmaceutical drugs drug prescription prescriptions medication medications
        meds doctor doctors weight diet fat lose loss herbal supplement hormone aging penis enlargement enlarge erection sexual libido
        xanax valium phentermine tramadol ambien soma generic dosage hgh""",
    "adult": """sex sexy porn xxx adult nude naked girls teen teens horny hardcore webcam singles lonely dating milf pussy cock lesbian
        fuck orgasm babes""",
    "transfer": """beneficiary nigeria lagos abuja deceased kin fund funds transfer transferred bank account foreign partner assistance
        confidential confidentiality urgent transaction barrister attorney minister contract late husband widow inheritance deposit
        deposited consignment sum percentage next lottery winning claim claims batch ballot ticket ref""",
    "stock": """stock stocks symbol shares trading trader traders otc pink sheets alert target volume breakout investor undervalued
        projected pick watch ticker explode rally gains nasdaq""",
    "goods": """replica replicas rolex watches watch casino poker bet betting blackjack jackpot software oem adobe windows office
        download licenses degree diploma university diplomas toner cartridges ink insurance warranty cable descrambler leads""",
    "account": """verify verification confirm account accounts suspended suspension limited unusual activity login password security update
        information billing paypal ebay customer member identity unauthorized access restore protect validate expire expired expires
        mailbox quota storage deactivated webmail invoice payment overdue docusign""",
    "business": """business opportunity home work working internet marketing marketers traffic hits site promote advertise advertising
        success successful system program programs secret secrets money potential people thousands hundreds results proven
        testimonials""",
    "talk": """thanks thank cheers regards wrote writes think thought maybe probably actually though guess wondering hope sorry hello
        yeah anyway btw fwiw imho afaik iirc hmm agree idea question questions problem problems looks seems tried trying""",
    "craft": """patch bug bugs code version file files error errors build server config script package packages test tests list archive
        branch commit release source kernel install installed perl python linux debian function module build compile command output
        directory library interface api database query thread tree repository diff log user users documentation""",
    "office": """meeting attached agenda project report schedule draft comments review team minutes conference call week monday tuesday
        wednesday thursday friday lunch budget document proposal paper students seminar class course""",
    "news": """article articles story stories news headlines editor reported according researchers scientists president government
        published read weekly daily issue edition today digest newsletter""",
}  # fmt: skip
_OF_WORD: dict[bytes, list[str]] = {}
for _name, _words in CATEGORIES.items():
    for _word in set(_words.split()):
        _OF_WORD.setdefault(_word.encode(), []).append(_name)

FUNCTION_WORDS = frozenset(word.encode() for word in listed("""i you your we our us it he she they them this that these those the a an and or but if then because so not no don't
    can't i'm it's i've didn't doesn't would could should will can may might must do does did is are was were be been have has had of to in
    on at by for from with without about into over after before which who what when where why how there here all any some each every just
    only also very more most much many few other such than too even still yet again once never always my me his her their its as while
    however since until though am"""))  # fmt: skip


def word_tokens(words: Sequence[bytes]) -> Iterator[str]:
    """How often each category and each function word is met, in steps of a hundred-and-twenty-eighth."""
    total = len(words)
    if total == 0:
        return
    counts: dict[str, int] = {}
    small: dict[bytes, int] = {}
    of_word = _OF_WORD
    for word in words:
        names = of_word.get(word)
        if names is not None:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        if word in FUNCTION_WORDS:
            small[word] = small.get(word, 0) + 1
    for name, count in counts.items():
        yield f"lex:{name}:{min((count * 128 // total).bit_length(), 6)}"
        yield f"lexn:{name}:{min(count.bit_length(), 5)}"
    for word, count in small.items():
        yield f"fw:{word.decode()}:{min((count * 128 // total).bit_length(), 4)}"
    yield f"fwall:{sum(small.values()) * 12 // total}"
    yield f"distinct:{len(set(words)) * 10 // total}"
