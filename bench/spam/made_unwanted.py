"""Templates of mail that nobody wants, of today: borrowed brands, empty threats, fortunes, cheap everything."""

from __future__ import annotations

from collections.abc import Callable

from bench.spam.pen import NOUNS, Draft, Pen, page

_BRANDS = [
    "PayPal",
    "Netflix",
    "Microsoft",
    "Office 365",
    "Amazon",
    "DHL Express",
    "Apple ID",
    "Coinbase",
    "MetaMask",
    "DocuSign",
    "LinkedIn",
    "Facebook",
    "Chase Bank",
    "Sparkasse",
    "USPS",
    "Dropbox",
]
_LINKS = [
    "https://{d}/{t}",
    "http://{d}/wp-content/{t}/login.php",
    "https://{t}.web.app/#{m}",
    "http://{ip}/{t}/",
    "https://{b}-secure.{d}/verify?e={m}",
    "https://bit.ly/{t}",
    "https://storage.{d}/{t}.html",
    "https://{t}.workers.dev/",
]


def _link(pen: Pen, brand: str = "account") -> str:
    ip = f"{pen.rng.randint(11, 200)}.{pen.rng.randint(1, 250)}.{pen.rng.randint(1, 250)}.{pen.rng.randint(1, 250)}"
    word = brand.split(maxsplit=1)[0].lower()
    return pen.one(_LINKS).format(d=pen.domain(), t=pen.token(9).lower(), m="user@example.com", ip=ip, b=word)


def _from(pen: Pen, brand: str) -> str:
    word = brand.split(maxsplit=1)[0].lower()
    return pen.one(
        [
            f"{pen.one('info|admin|no-reply|support|service')}@{pen.domain()}",
            f"{pen.token(8).lower()}@{pen.one(NOUNS)}{pen.number(10, 99)}.{pen.one('xyz|top|info|click|ru|com')}",
            f"{word}.support@{pen.domain()}",
            f"{pen.token(9).lower()}{pen.number(10, 999)}@gmail.com",
        ]
    )


def account(pen: Pen) -> Draft:
    """An account is said to be in danger."""
    brand = pen.one(_BRANDS)
    subject, body, button = pen.rng.choice(
        [
            (
                f"{pen.one(['Action required', 'Important', 'Final notice', 'Security alert'])}: your {brand} account has been {pen.one('limited|suspended|locked')}",
                f"We detected unusual activity on your account. To avoid permanent suspension, you must verify your information within {pen.one('24|48|12')} hours.",
                "Verify Now",
            ),
            (
                f"Your {brand} subscription could not be renewed",
                "Your payment was declined. Please update your billing information immediately, otherwise your membership will be terminated.",
                "Update Payment",
            ),
            (
                f"[{brand}] Unusual sign-in activity",
                "Someone from Russia/Moscow tried to access your account. Confirm your identity now to keep your account secure.",
                "Secure My Account",
            ),
            (
                f"{brand}: Ihr Konto wurde vorübergehend gesperrt",
                "Sehr geehrter Kunde, aus Sicherheitsgründen wurde Ihr Konto eingeschränkt. Bitte bestätigen Sie Ihre Daten innerhalb von 24 Stunden, sonst wird Ihr Zugang endgültig gelöscht.",
                "Jetzt bestätigen",
            ),
            (
                f"{brand} : votre compte sera suspendu",
                "Cher client, nous avons constaté une activité inhabituelle. Veuillez confirmer votre identité dans les 24 heures.",
                "Confirmer",
            ),
            (
                f"Aviso: su cuenta {brand} ha sido bloqueada",
                "Estimado cliente, por favor verifique su cuenta en 24 horas o será suspendida definitivamente.",
                "Verificar cuenta",
            ),
        ]
    )
    hello = pen.one("Dear customer,|Dear user,|Hello user@example.com,|Dear valued member,|Attention:")
    html = page(
        pen,
        [hello, body, "Thank you for your cooperation." if pen.chance(0.5) else f"{brand} Support Team"],
        (button, _link(pen, brand)),
        f"© {pen.number(2019, 2026)} {brand}. All rights reserved.",
        pen.one(["", f"https://{pen.domain()}/logo.png"]),
    )
    if pen.chance(0.2):
        html = html.replace("</body>", f'<div style="display:none;font-size:0px">{pen.prose(6)}</div></body>')
    return Draft(
        pen.one([brand, f"{brand} Support", f"{brand} Security", f"{brand.upper()} Service"]),
        _from(pen, brand),
        subject,
        f"{hello}\n\n{body}\n\n{_link(pen, brand)}\n" if pen.chance(0.3) else "",
        html,
    )


def mailbox(pen: Pen) -> Draft:
    """A mailbox is said to be full, or its password to end."""
    where = pen.domain()
    subject = pen.one(
        [
            f"Mailbox quota exceeded for user@{where}",
            f"{where}: password expires today",
            f"({pen.rng.randint(3, 9)}) Incoming messages on hold",
            "Email termination notice",
            f"ATTN: user@{where} server upgrade",
            "Voice message from +1 (***) ***-**22",
            "You have a new encrypted document",
        ]
    )
    body = pen.one(
        [
            f"Your mailbox user@{where} is 98% full. You will not be able to send or receive messages. Increase your storage now.",
            "The password to your mailbox expires today. Click below to keep the same password.",
            f"We are closing all old versions of our mailbox. Confirm your account user@{where} within 48 hours or it will be deactivated.",
            "You have 1 new voicemail. Listen to the message below.",
            "A secure document was shared with you. Sign in with your email password to view it.",
        ]
    )
    files = (
        [
            (
                pen.one(["VM_0093.htm", "Statement.shtml", "Remittance.html"]),
                "text/html",
                f"<form action='https://{pen.domain()}/p.php'><input type=password name=p></form>".encode(),
            )
        ]
        if pen.chance(0.3)
        else []
    )
    return Draft(
        pen.one(["IT Support", "Mail Administrator", f"{where} Helpdesk", "Webmail Team", where]),
        _from(pen, where),
        subject,
        "",
        page(
            pen,
            [f"Dear user@{where}", body],
            (pen.one("Keep same password|Increase quota|Release messages|View document"), _link(pen)),
            f"{where} mail server",
        ),
        files=files,
    )


def parcel(pen: Pen) -> Draft:
    """A parcel waits for a small fee."""
    carrier = pen.one("DHL|USPS|FedEx|Post|Correos|La Poste|Royal Mail")
    subject = pen.one(
        [
            f"Your package could not be delivered {pen.number()}",
            f"{carrier}: pending customs fee",
            "Last reminder: confirm your delivery address",
            "Ihr Paket konnte nicht zugestellt werden",
            "Votre colis est en attente de livraison",
            "Su paquete está en espera",
        ]
    )
    body = pen.one(
        [
            f"Your package is waiting at our depot. Pay the shipping fee of {pen.money()} within 48 hours or it will be returned to the sender.",
            f"Ihr Paket wartet auf die Zustellung. Bitte bezahlen Sie die Zollgebühr von {pen.money()} innerhalb von 24 Stunden.",
            f"Votre colis est bloqué. Payez les frais de {pen.money()} dans les 48 heures.",
        ]
    )
    return Draft(
        pen.one([carrier, f"{carrier} Delivery", f"{carrier}-Support"]),
        _from(pen, carrier),
        subject,
        "",
        page(pen, [body], (pen.one("Schedule delivery|Pay now|Jetzt bezahlen|Payer"), _link(pen, carrier)), f"{carrier} International"),
    )


def invoice(pen: Pen) -> Draft:
    """An invoice that runs when it is opened, or a call to a wrong number."""
    number = pen.number()
    name, kind = pen.rng.choice(
        [
            (f"Invoice_{number}.zip", "application/zip"),
            (f"PO-{number}.pdf.exe", "application/octet-stream"),
            (f"Remittance {number}.html", "text/html"),
            (f"scan_{number}.docm", "application/vnd.ms-word.document.macroEnabled.12"),
            (f"order{number}.iso", "application/octet-stream"),
            (f"RFQ {number}.rar", "application/octet-stream"),
        ]
    )
    text = pen.one(
        [
            f"Dear Sir/Madam,\n\nKindly find attached our purchase order {number}. Please confirm and send proforma invoice urgently.\n\nBest Regards\nPurchasing Manager",
            "Good day,\n\nAttached is the payment slip as instructed. Kindly confirm receipt asap.\n\nRegards,\nAccounts",
            f"Your subscription has been renewed for {pen.money()}. If you did not authorise this charge, call +1 (8{pen.number(10, 99)}) {pen.number(100, 999)}-{pen.number()} immediately for refund.",
        ]
    )
    return Draft(
        pen.one(["Purchasing Dept", "Accounts Payable", "Norton Billing", pen.name()]),
        _from(pen, "invoice"),
        pen.one([f"RE: Purchase order {number}", f"Payment advice {number}", f"Overdue invoice #{number}", "URGENT QUOTATION"]),
        text,
        files=[(name, kind, pen.rng.randbytes(1500))] if pen.chance(0.8) else [],
    )


def fortune(pen: Pen) -> Draft:
    """Somebody gives millions away."""
    sum_ = f"{pen.one('$|USD |€|GBP ')}{pen.rng.randint(1, 90)}.{pen.rng.randint(1, 9)} million"
    text = pen.one(
        [
            f"Dear Friend,\n\nI am {pen.name()}, a {pen.one('barrister|bank director|widow')} and I have a confidential business proposal for you. My late client left {sum_} with no next of kin. I need your assistance as beneficiary to transfer the fund to your account. You will receive 40% of the sum. Reply with your full name, address and telephone number.\n\nYours sincerely",
            f"CONGRATULATIONS!!! Your email address has won {sum_} in our international lottery. Contact our claims agent with your winning number {pen.number()} to claim your prize.",
            f"Greetings,\n\nI am donating {sum_} to you for charity work. Contact me back for details of this donation. God bless you.\n\nMrs. {pen.name()}",
            f"This is to notify you that your compensation fund of {sum_} is ready as ATM card. Send your delivery address and the fee of {pen.money()} through Western Union to our diplomat.",
        ]
    )
    address = f"{pen.token(7).lower()}{pen.number(10, 99)}@{pen.one('gmail.com|yahoo.com|hotmail.com|outlook.com')}"
    return Draft(
        pen.one([pen.name(), "Mrs. " + pen.name(), "UNITED NATIONS", "FOREIGN OFFICE"]),
        _from(pen, "office"),
        pen.one(
            [
                "URGENT RESPONSE NEEDED",
                "Business proposal",
                "Your fund",
                "DONATION TO YOU",
                "Winning notification",
                "Dear beneficiary",
                "Re: compensation payment",
            ]
        ),
        text,
        headers=[("Reply-To", address)] if pen.chance(0.8) else [],
    )


def blackmail(pen: Pen) -> Draft:
    """Somebody says that he has seen everything."""
    text = f"Hello!\n\nI have bad news for you. {pen.one(['I hacked your device and recorded you through your camera while you watched adult videos.', 'Your operating system was infected with my trojan and I have full access to your contacts.'])} Transfer {pen.money()} in bitcoin to my wallet bc1q{pen.token(36).lower()} within 48 hours, or I will send the video to all your contacts. Do not try to contact the police.\n"
    return Draft(
        pen.one(["", "Hacker", "user", pen.name()]),
        _from(pen, "mail"),
        pen.one(
            [
                "Your account has been hacked",
                "I recorded you",
                "Payment from your account",
                "Pending for payment.",
                f"{pen.token(8).lower()} is your password",
            ]
        ),
        text,
    )


def goods(pen: Pen) -> Draft:
    """Pills, watches, coins, followers, love."""
    subject, body = pen.rng.choice(
        [
            (
                "Cheap meds online, no prescription",
                "Buy Viagra, Cialis and more at the lowest prices. Worldwide shipping, 100% guaranteed satisfaction.",
            ),
            (
                "Make $5000 a day with bitcoin",
                "This secret trading robot makes ordinary people rich. Limited spots. Join free today and start earning now!",
            ),
            ("She wants to meet you tonight", "Hot single girls in your area are waiting to chat. Create your free profile now."),
            (
                f"Replica watches -{pen.rng.randint(50, 90)}%",
                "Luxury replicas of all famous brands at unbeatable prices. Order now and get free shipping!",
            ),
            (
                "First page of search results guaranteed",
                "We can place your website on the first page. We offer SEO and link building at affordable price. Reply with your phone number.",
            ),
            (
                "You have been approved for a loan",
                "Bad credit? No problem! Get up to $100,000 today at 2% interest. No collateral. Apply now.",
            ),
            ("Lose 30 pounds in 30 days", "Doctors hate this weird trick that melts belly fat overnight. Try it risk free now!"),
            (
                "Congratulations! You have been selected",
                "You won a free iPhone. Complete our short survey to claim your reward before it expires today.",
            ),
            ("Win big at our casino", "Get 500 free spins and a 400% welcome bonus. Play now, instant payout!"),
        ]
    )
    junk = f"\n\n\n{pen.prose(3)}" if pen.chance(0.3) else ""
    if pen.chance(0.3):
        subject = f"{subject} {pen.token(6).lower()}"
    link = _link(pen)
    html = (
        page(pen, [f"<b>{body}</b>"], ("CLICK HERE", link), f'To be removed <a href="{_link(pen)}">click here</a>')
        if pen.chance(0.6)
        else ""
    )
    return Draft(
        pen.one([pen.name(), "Best Offer", "Dr. " + pen.one(["Smith", "Lee"]), "Winner"]),
        _from(pen, "offer"),
        subject,
        f"{body}\n\n{link}{junk}\n" if not html or pen.chance(0.4) else "",
        html,
    )


def favour(pen: Pen) -> Draft:
    """The boss needs gift cards."""
    boss = pen.name()
    text = pen.one(
        [
            f"Are you available? I need you to run a task for me discreetly. I am in a meeting, so e-mail only.\n\n{boss}\nSent from my iPhone",
            f"I need you to purchase gift cards for some clients, 5 pieces of $100 each. Scratch the back and send me the codes. I will reimburse you today.\n\n{boss}",
            f"Hi,\n\nI have changed my bank account. Can my salary be paid to the new one before the next pay date? What details do you need?\n\n{boss}",
            f"Please process an urgent wire transfer to a new vendor today. Keep this confidential until the deal is closed.\n\n{boss}\nCEO",
        ]
    )
    address = f"{pen.one('ceo|office|exec|private')}{pen.number(10, 9999)}@{pen.one('gmail.com|outlook.com|mail.com')}"
    return Draft(
        boss,
        address,
        pen.one(["Quick request", "Urgent", "Are you at your desk?", "Payroll update", "Task"]),
        text,
        headers=[("Reply-To", f"{pen.token(6).lower()}@{pen.one('gmail.com|mail.com')}")] if pen.chance(0.5) else [],
    )


UNWANTED: list[Callable[[Pen], Draft]] = [account, mailbox, parcel, invoice, fortune, blackmail, goods, favour]
