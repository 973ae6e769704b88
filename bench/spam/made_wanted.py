"""Templates of mail that people want, of today: receipts, notifications, newsletters, invitations, letters."""

from __future__ import annotations

from collections.abc import Callable

from bench.spam.pen import Draft, Pen, page

_HELLO = {"en": "Hi|Hello|Dear", "de": "Hallo|Guten Tag|Liebe", "fr": "Bonjour|Chère", "es": "Hola|Estimada"}
_THANKS = {
    "en": "Thanks|Best regards|Cheers",
    "de": "Viele Grüße|Mit freundlichen Grüßen",
    "fr": "Cordialement|Bien à vous",
    "es": "Saludos|Un saludo",
}


def _shop(pen: Pen) -> tuple[str, str]:
    domain = pen.domain()
    return domain.partition(".")[0].replace("-", " ").title(), domain


def _bulk(pen: Pen, domain: str) -> list[tuple[str, str]]:
    link = f"https://{pen.one('click|links|email|t')}.{domain}/u/{pen.token(20)}"
    headers = [("List-Unsubscribe", f"<{link}>"), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")]
    extra = [
        ("Feedback-ID", f"{pen.number()}:{pen.number()}:{pen.one('esp|mailer|campaign')}"),
        ("Precedence", "bulk"),
        ("List-Id", f"<{pen.number()}.{domain}>"),
    ]
    return headers + [each for each in extra if pen.chance(0.5)]


def receipt(pen: Pen) -> Draft:
    """An order was placed or paid."""
    shop, domain = _shop(pen)
    language = pen.one("en|en|en|de|fr|es")
    number, total, who = pen.number(), pen.money(), pen.name().split()[0]
    subject = {
        "en": f"{pen.one('Your order|Receipt for your order|Order confirmation|Your receipt from ' + shop)} #{number}",
        "de": f"{pen.one('Ihre Bestellung|Bestellbestätigung|Rechnung zu Ihrer Bestellung')} {number}",
        "fr": f"{pen.one('Votre commande|Confirmation de commande')} n° {number}",
        "es": f"{pen.one('Tu pedido|Confirmación de pedido')} {number}",
    }[language]
    lines = {
        "en": [
            f"thank you for your order. We received your payment of {total}.",
            f"Order number: {number}",
            f"{pen.rng.randint(1, 4)} x {pen.one(['Rake', 'Lamp', 'Notebook', 'Cotton shirt', 'USB cable', 'Coffee beans'])}  {total}",
            f"Total (VAT included): {total}",
            "You can see your order in your account. If you have questions, reply to this e-mail.",
        ],
        "de": [
            "vielen Dank für Ihre Bestellung.",
            f"Bestellnummer: {number}",
            f"Summe inkl. MwSt.: {total}",
            "Die Rechnung finden Sie in Ihrem Kundenkonto. Bei Fragen antworten Sie einfach auf diese E-Mail.",
        ],
        "fr": [
            "merci pour votre commande.",
            f"Numéro de commande : {number}",
            f"Total TTC : {total}",
            "Vous pouvez suivre votre commande dans votre compte.",
        ],
        "es": ["gracias por tu compra.", f"Número de pedido: {number}", f"Total: {total}", "Puedes ver tu pedido en tu cuenta."],
    }[language]
    hello = f"{pen.one(_HELLO[language])} {who},"
    link = f"https://{pen.one('www.|')}{domain}/account/orders/{number}"
    files = [(f"invoice-{number}.pdf", "application/pdf", b"%PDF-1.4\n" + pen.rng.randbytes(900))] if pen.chance(0.25) else []
    footer = f'{shop} · {pen.one(["Main Street 5", "Hauptstraße 12", "8 Rue du Port"])} · <a href="https://{domain}/imprint">Imprint</a>'
    html = page(pen, [hello, *lines], ("View order", link), footer, f"https://cdn.{domain}/logo.png") if pen.chance(0.85) else ""
    text = "\n\n".join([hello, *lines, link, shop]) if not html or pen.chance(0.7) else ""
    return Draft(
        shop,
        f"{pen.one('orders|shop|no-reply|service|billing')}@{domain}",
        subject,
        text,
        html,
        files=files,
        path=f"bounces+{pen.number()}@{pen.one('em.|mail.|')}{domain}",
    )


def shipping(pen: Pen) -> Draft:
    """A parcel is on its way."""
    shop, domain = _shop(pen)
    code, language = pen.token(14).upper(), pen.one("en|en|de|fr|es")
    subject = {
        "en": pen.one([f"Your {shop} order has shipped", "Your parcel is on its way", f"Out for delivery: {code}"]),
        "de": pen.one(["Ihr Paket ist unterwegs", f"Ihre Sendung {code} wurde verschickt"]),
        "fr": "Votre colis est en route",
        "es": "Tu paquete está en camino",
    }[language]
    body = {
        "en": f"Good news: your parcel {code} left our warehouse and arrives on {pen.one('Monday|Tuesday|Friday')} between 9:00 and 13:00.",
        "de": f"Ihre Sendung {code} ist unterwegs und kommt voraussichtlich am {pen.one('Montag|Dienstag|Freitag')} zwischen 9 und 13 Uhr an.",
        "fr": f"Votre colis {code} a quitté notre entrepôt et arrivera vendredi.",
        "es": f"Tu paquete {code} ha salido de nuestro almacén y llegará el viernes.",
    }[language]
    link = f"https://{pen.one('track.|www.|')}{domain}/t/{code}"
    html = page(
        pen, [body], (pen.one("Track parcel|Sendung verfolgen|Suivre|Seguir"), link), f"{shop}. Please do not reply to this e-mail."
    )
    return Draft(shop, f"{pen.one('shipping|noreply|tracking')}@{domain}", subject, f"{body}\n\n{link}\n" if pen.chance(0.6) else "", html)


def notification(pen: Pen) -> Draft:
    """Something happened in a tool people work with."""
    tool, domain = _shop(pen)
    project, number, who = f"{pen.one('acme|globex|initech')}/{pen.one(['api', 'web', 'docs', 'mail'])}", pen.number(1, 4000), pen.name()
    title = pen.one(
        [
            "Crash when the list is empty",
            "Add retry to the client",
            "Docs: fix typos",
            "Tests fail on Python 3.12",
            "Slow query in search",
            "Update dependencies",
        ]
    )
    code = pen.one(
        [
            f'```\nTraceback (most recent call last):\n  File "main.py", line {number}\n```',
            "LGTM, merging once CI is green.",
            f"@{who.split()[0].lower()} commented on this pull request.\n\n> {pen.prose(1)}\n\n{pen.prose(1)}",
        ]
    )
    link = f"https://{domain}/{project}/{pen.one('issues|pull|merge_requests')}/{number}"
    text = f"{code}\n\n{pen.prose(pen.rng.randint(0, 3))}\n\n-- \nReply to this email directly or view it on {tool}:\n{link}\nYou are receiving this because you are subscribed to this thread.\n"
    headers = [
        ("List-ID", f"{project} <{project.replace('/', '.')}.{domain}>"),
        ("Precedence", "list"),
        ("List-Unsubscribe", f"<https://{domain}/notifications/unsubscribe/{pen.token(24)}>"),
    ]
    thread = f"<{project}/issues/{number}@{domain}>"
    if pen.chance(0.8):
        headers += [("In-Reply-To", thread), ("References", thread)]
    html = (
        f'<p></p>\n<p dir="auto">{pen.prose(2)}</p>\n<p style="font-size:small;color:#666;">&mdash;<br>Reply to this email directly, <a href="{link}">view it on {tool}</a>.</p>'
        if pen.chance(0.7)
        else ""
    )
    return Draft(
        who,
        f"notifications@{domain}",
        f"{pen.one(['Re: ', '', 'Re: '])}[{project}] {title} (#{number})",
        text,
        html,
        headers,
        to=f"{project.partition('/')[2]}@noreply.{domain}",
    )


def newsletter(pen: Pen) -> Draft:
    """Weekly reading, asked for; and shops that the reader buys from."""
    shop, domain = _shop(pen)
    is_offer = pen.chance(0.5)
    if is_offer:
        subject = pen.one(
            [
                f"{pen.rng.randint(10, 50)}% off everything this weekend",
                "New arrivals for spring",
                "Last chance: free shipping ends tonight",
                "Your exclusive member discount",
                "Nur heute: Rabatt auf alles",
                "Soldes : jusqu'à -50 %",
                "Rebajas de verano",
            ]
        )
        lines = [
            pen.one(
                [
                    "Our sale has started. Save on lamps, chairs and more while stocks last.",
                    "Members save today. Use the code SPRING at checkout.",
                    "Entdecken Sie unsere neuen Angebote. Der Rabatt gilt bis Sonntag.",
                    "Profitez de nos offres jusqu'à dimanche.",
                ]
            ),
            pen.prose(1),
        ]
    else:
        subject = pen.one(
            [
                f"{shop} Weekly #{pen.number(1, 400)}",
                "What we read this week",
                "Ten bulbs to plant before the frost",
                "Issue 42: slow software",
                "Der Wochenrückblick",
                "La lettre de la semaine",
            ]
        )
        lines = [pen.prose(3) for _ in range(pen.rng.randint(2, 7))]
    lines = [
        f'{each} <a href="https://{pen.one("click|links|e")}.{domain}/c/{pen.token(40)}?utm_source=newsletter&amp;utm_medium=email">{pen.one("Read more|Shop now|Continue reading|Mehr lesen|Lire la suite")}</a>'
        for each in lines
    ]
    footer = f'You receive this e-mail because you subscribed at {domain}. <a href="https://{domain}/unsubscribe/{pen.token(20)}">Unsubscribe</a> | <a href="https://{domain}/view/{pen.token(12)}">View in browser</a>'
    html = (
        page(pen, lines, None, footer, f"https://images.{domain}/header.jpg")
        + f'<img src="https://{domain}/open/{pen.token(20)}.gif" width="1" height="1" alt="">'
    )
    text = (
        f"{pen.prose(4)}\n\nRead more: https://{domain}/{pen.token(6)}\n\nUnsubscribe: https://{domain}/unsubscribe/{pen.token(20)}\n"
        if pen.chance(0.6)
        else ""
    )
    return Draft(
        shop,
        f"{pen.one('news|newsletter|hello|team')}@{pen.one('mail.|news.|')}{domain}",
        subject,
        text,
        html,
        _bulk(pen, domain),
        path=f"bounce-{pen.number()}@{pen.one('mail.|em.')}{domain}",
    )


def invitation(pen: Pen) -> Draft:
    """A calendar's invitation with its file."""
    who, domain = pen.name(), pen.domain()
    title = pen.one(["Planning", "Coffee", "Interview with the candidate", "Quarterly review", "Jour fixe", "Réunion d'équipe"])
    when = f"{pen.one('Mon|Tue|Wed')} {pen.rng.randint(1, 28)} {pen.one('Jan|May|Oct')} 20{pen.rng.randint(19, 26)} {pen.rng.randint(8, 17)}:00 - {pen.rng.randint(9, 18)}:30 ({pen.one('CET|EST|BST')})"
    text = f"{who} has invited you to the following event:\n\n{title}\n{when}\nJoining info: https://meet.{domain}/{pen.token(10).lower()}\n\nGuests: {pen.name()}, {pen.name()}\n"
    ics = f"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nSUMMARY:{title}\r\nUID:{pen.token(26)}@{domain}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    html = (
        page(pen, [f"<b>{title}</b>", when, f"{who} invites you."], ("Yes", f"https://calendar.{domain}/r/{pen.token(20)}"))
        if pen.chance(0.6)
        else ""
    )
    return Draft(
        who,
        f"{who.split()[0].lower()}@{domain}",
        f"{pen.one(['Invitation', 'Updated invitation', 'Einladung', 'Accepted'])}: {title} @ {when}",
        text,
        html,
        files=[("invite.ics", "text/calendar; method=REQUEST", ics.encode())],
    )


def reset(pen: Pen) -> Draft:
    """A password was asked for, a sign-in was seen, an address is to be confirmed; all from the service itself."""
    tool, domain = _shop(pen)
    link = f"https://{pen.one('www.|app.|accounts.|')}{domain}/{pen.one('reset|verify|confirm|login')}/{pen.token(32)}"
    subject, body, button = pen.rng.choice(
        [
            (
                f"Reset your {tool} password",
                f"Someone asked to reset the password of your {tool} account. If this was you, use the link below within 24 hours. If not, ignore this e-mail; your password stays the same.",
                "Reset password",
            ),
            (
                "Confirm your e-mail address",
                f"Please confirm your e-mail address to finish setting up your {tool} account.",
                "Confirm e-mail",
            ),
            (
                f"New sign-in to your {tool} account",
                f"We noticed a new sign-in to your account from Firefox on Linux near {pen.one('Berlin|Lyon|Leeds')}. If this was you, there is nothing to do.",
                "Check activity",
            ),
            (
                f"Your {tool} verification code is {pen.number(100000, 999999)}",
                f"Your code is {pen.number(100000, 999999)}. It expires in 10 minutes. Do not share it with anyone.",
                "",
            ),
            (
                "Passwort zurücksetzen",
                f"Sie haben angefordert, Ihr Passwort bei {tool} zurückzusetzen. Der Link gilt 24 Stunden. Wenn Sie das nicht waren, ignorieren Sie diese E-Mail.",
                "Passwort zurücksetzen",
            ),
            (
                "Réinitialisation de votre mot de passe",
                f"Vous avez demandé la réinitialisation de votre mot de passe {tool}. Ce lien est valable 24 heures.",
                "Réinitialiser",
            ),
            (
                "Restablece tu contraseña",
                f"Hemos recibido una solicitud para restablecer tu contraseña de {tool}. El enlace caduca en 24 horas.",
                "Restablecer",
            ),
            (
                f"Your {tool} trial ends in 3 days",
                "Your trial is about to end. Add a payment method to keep your projects.",
                "Choose a plan",
            ),
        ]
    )
    hello = f"{pen.one('Hi|Hello|Hallo|Bonjour|Hola')} {pen.name().split()[0]},"
    html = page(
        pen,
        [hello, body],
        (button, link) if button else None,
        f'{tool}, {pen.number(1, 99)} Harbour Road. Questions? <a href="mailto:support@{domain}">support@{domain}</a>',
    )
    return Draft(
        tool,
        f"{pen.one('no-reply|noreply|security|accounts|hello')}@{domain}",
        subject,
        f"{hello}\n\n{body}\n\n{link if button else ''}\n\n{tool}" if pen.chance(0.7) else "",
        html,
    )


def statement(pen: Pen) -> Draft:
    """A bill, a statement, a reminder from somebody the reader has a contract with."""
    firm, domain = _shop(pen)
    number, total = pen.number(), pen.money()
    subject, body = pen.rng.choice(
        [
            (f"Invoice {number} from {firm}", f"please find attached our invoice {number} over {total}. It is due within 30 days."),
            (
                "Your monthly statement is ready",
                f"your statement for {pen.one('March|June|October')} is available in online banking. We never ask for your PIN by e-mail.",
            ),
            (
                f"Ihre Rechnung {number}",
                f"anbei erhalten Sie die Rechnung {number} über {total}. Der Betrag wird am {pen.rng.randint(1, 28)}.{pen.rng.randint(1, 12)}. abgebucht.",
            ),
            ("Payment received, thank you", f"we received your payment of {total} for invoice {number}."),
            (f"Facture n° {number}", f"veuillez trouver ci-joint votre facture d'un montant de {total}."),
        ]
    )
    hello = f"{pen.one('Dear customer|Dear|Sehr geehrte Frau|Bonjour')} {pen.one([pen.name(), ''])},"
    files = (
        [(f"{pen.one('Invoice|Rechnung|Facture')}_{number}.pdf", "application/pdf", b"%PDF-1.5\n" + pen.rng.randbytes(1200))]
        if pen.chance(0.6)
        else []
    )
    html = page(pen, [hello, body, "Kind regards", firm]) if pen.chance(0.6) else ""
    return Draft(
        f"{firm} {pen.one(['Billing', 'Service', ''])}".strip(),
        f"{pen.one('billing|invoice|service|rechnung')}@{domain}",
        subject,
        f"{hello}\n\n{body}\n\nKind regards\n{firm}\n",
        html,
        files=files,
    )


def letter(pen: Pen) -> Draft:
    """One person to another, in one of four languages, often an answer."""
    who, domain, language = (
        pen.name(),
        pen.one([pen.domain(), pen.domain(), "gmail.com", "outlook.com", "gmx.de"]),
        pen.one("en|en|de|fr|es"),
    )
    own = {
        "en": pen.prose(pen.rng.randint(1, 6)),
        "de": pen.one(
            [
                "Kannst du mir bis Freitag sagen, ob der Termin passt? Sonst verschieben wir ihn auf nächste Woche.",
                "Danke für die Fotos, die sind wirklich schön geworden. Wir melden uns am Wochenende.",
                "Anbei die Unterlagen für die Besprechung. Ich habe die Zahlen noch einmal geprüft.",
            ]
        ),
        "fr": pen.one(
            [
                "Peux-tu me dire si le rendez-vous de jeudi te convient ? Sinon on décale.",
                "Merci pour les documents, je les relis ce soir et je te réponds demain.",
            ]
        ),
        "es": pen.one(
            [
                "¿Puedes confirmar si te va bien la reunión del jueves? Si no, la movemos.",
                "Gracias por las fotos, han quedado muy bien. Hablamos el fin de semana.",
            ]
        ),
    }[language]
    hello, bye = f"{pen.one(_HELLO[language])} {pen.name().split()[0]},", f"{pen.one(_THANKS[language])}\n{who.split()[0]}"
    is_answer = pen.chance(0.6)
    quoted = (
        f"\n\nOn {pen.one('Mon|Tue|Thu')}, {pen.name()} wrote:\n> " + "\n> ".join(pen.prose(1) for _ in range(pen.rng.randint(1, 4)))
        if is_answer
        else ""
    )
    text = f"{hello}\n\n{own}\n\n{bye}{quoted}\n"
    thread = f"<{pen.token(20)}@{pen.domain()}>"
    headers = [("In-Reply-To", thread), ("References", thread)] if is_answer else []
    html = f'<div dir="ltr">{hello}<div><br></div><div>{own}</div><div><br></div><div>{bye}</div></div>' if pen.chance(0.5) else ""
    subject = pen.one(
        [
            "Thursday",
            "photos",
            "the draft",
            "Termin",
            "Unterlagen",
            "question about the licence",
            "Rendez-vous",
            "Reunión",
            "keys",
            "trip in May",
        ]
    )
    return Draft(
        who, f"{who.split()[0].lower()}.{who.split()[1].lower()}@{domain}", f"{'Re: ' if is_answer else ''}{subject}", text, html, headers
    )


def machine(pen: Pen) -> Draft:
    """What a machine of one's own says: cron, monitoring, feeds turned into mail."""
    domain = pen.domain()
    host = f"{pen.one('web1|db2|backup|build')}.{domain}"
    subject, text = pen.rng.choice(
        [
            (
                f"Cron <root@{host}> /usr/local/bin/backup",
                f"backup: {pen.number()} files, {pen.number()} kB\nbackup: done in {pen.number(1, 900)} s\n",
            ),
            (
                f"[{pen.one('OK|WARNING|CRITICAL')}] disk space on {host}",
                f"/dev/sda1 is {pen.rng.randint(50, 99)}% full\n{pen.number()} kB available\n",
            ),
            (
                pen.prose(1).strip(".?"),
                f"URL: http://{pen.domain()}/{pen.number()}\nDate: {pen.number(2001, 2026)}-10-02T18:11:03+01:00\n\n{pen.prose(2)}\n",
            ),
            (
                f"logwatch for {host}",
                f"################### Logwatch ####################\n sshd: {pen.number(1, 99)} failed logins\n postfix: {pen.number()} messages\n",
            ),
            (
                f"Build {pen.number(1, 9000)} {pen.one('passed|failed')}: main",
                f"Commit {pen.token(8).lower()} by {pen.name()}\n{pen.prose(1)}\nTests: {pen.number(100, 4000)} passed\n",
            ),
        ]
    )
    name = pen.one(["root", "Cron Daemon", "monitoring", "", pen.one(NEWS)])
    return Draft(
        name,
        f"{pen.one('root|cron|feeds|alerts')}@{domain}",
        subject,
        text,
        to=f"{pen.one('root|admin|ops')}@{domain}",
        local=pen.chance(0.7),
        headers=[("Auto-Submitted", "auto-generated")] if pen.chance(0.4) else [],
    )


NEWS = ["guardian", "kottke", "slashdot", "hackernews", "lwn", "planet"]


def listed(pen: Pen) -> Draft:
    """Somebody writes to a mailing list."""
    draft = letter(pen)
    name, domain = pen.one([f"{pen.one('users|devel|announce|help')}", "friends"]), pen.domain()
    draft.text = f"{pen.prose(pen.rng.randint(2, 8))}\n{pen.one(['', '', chr(10) + '    def main(): pass' + chr(10)])}\n-- \n{draft.name}\n_______________________________________________\n{name} mailing list\n{name}@{domain}\nhttps://{domain}/mailman/listinfo/{name}\n"
    draft.html = ""
    draft.to = f"{name}@{domain}"
    draft.path = f"{name}-bounces@{domain}"
    draft.host = f"lists.{domain}"
    draft.subject = f"[{name}] {draft.subject}"
    draft.headers += [
        ("List-Id", f"<{name}.{domain}>"),
        ("List-Post", f"<mailto:{name}@{domain}>"),
        ("List-Unsubscribe", f"<https://{domain}/mailman/options/{name}>"),
        ("Precedence", "list"),
    ]
    return draft


WANTED: list[Callable[[Pen], Draft]] = [receipt, shipping, notification, newsletter, invitation, reset, statement, letter, machine, listed]
