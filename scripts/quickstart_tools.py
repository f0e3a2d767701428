"""The tools and questions from which `make_quickstart_data.py` makes its rows.

A tool is written as `(description, parameters, questions)`. In `parameters`, `name=kind` is a required
parameter and `name?=kind` an optional one. A kind is one of `quickstart_values.POOLS`, `int:low:high`,
`num:low:high`, `bool`, one of the patterns `date`, `time`, `email`, `order`, `tracking` and `phone`, an
enum `a|b|c`, or `units.0` and `units.1`, the two halves of one pair of units.

In a question, `{city}` is the parameter's value, drawn and written as it is; `{symbols=true:with symbols}`
writes "with symbols" and sets the parameter to true. `{city_2}` belongs to a second call of the same tool,
which takes from the first what it does not name. A parameter that a question does not name stays out of
the call.
"""

import re
from typing import Any

Tool = tuple[str, str, tuple[str, ...]]

TOOLS: dict[str, Tool] = {
    "get_weather": ("Get the weather forecast of a city",
                    "city=city", (
        "What is the weather like in {city}?",
        "How is the weather in {city} and in {city_2}?",
    )),
    "calculate": ("Do arithmetic on two numbers",
                  "a=num:2:900 b=num:2:90 operation=plus|minus|times|divided by", (
        "What is {a} {operation} {b}?",
        "Calculate {a} {operation} {b}.",
        "{a} {operation} {b}",
    )),
    "convert_currency": ("Convert an amount of money to another currency",
                         "amount=num:5:5000 from_currency=currency to_currency=currency", (
        "How much is {amount} {from_currency} in {to_currency}?",
        "Convert {amount} {from_currency} to {to_currency}.",
        "I have {amount} {from_currency}. What is that in {to_currency}?",
    )),
    "create_event": ("Add an event to the calendar", "title=event date=date", (
        "Put {title} in my calendar on {date}.",
        "Schedule {title} on {date}.",
    )),
    "send_email": ("Send an email", "to=email subject=topic", (
        "Send an email to {to} about {subject}.",
        "Email {to} with the subject {subject}.",
    )),
    "play_music": ("Play a song", "song=song", (
        "Play the song {song}.",
        "Can you play {song} for me?",
    )),
    "search_products": ("Search the shop for products", "query=product", (
        "Find me a {query} in the shop.",
        "Search the shop for a {query} and a {query_2}.",
    )),
    "get_order_status": ("Look up the status of an order", "order_id=order", (
        "Where is my order {order_id}?",
        "What is the status of order {order_id}?",
        "Has order {order_id} been shipped yet?",
        "Check the orders {order_id} and {order_id_2}.",
    )),
    "set_reminder": ("Set a reminder", "task=task time=time", (
        "Remind me to {task} at {time}.",
        "I must not forget to {task}. Set a reminder for {time}.",
        "Set a reminder for {time}: {task}.",
    )),
    "set_thermostat": ("Set the temperature of a room", "room=room temperature=int:14:30", (
        "Set the {room} to {temperature} degrees.",
        "Heat the {room} to {temperature} degrees.",
        "Make it {temperature} degrees in the {room}.",
    )),
    "translate_text": ("Translate a text into another language", "text=phrase language=language", (
        'Translate "{text}" into {language}.',
        'How do you say "{text}" in {language}?',
        'What is "{text}" in {language}?',
    )),
    "search_flights": ("Search for flights",
                       "origin=city destination=city date=date", (
        "Find flights from {origin} to {destination} on {date}.",
        "Fly me from {origin} to {destination} on {date}.",
    )),
    "book_hotel": ("Book a hotel room", "city=city check_in=date nights=int:2:30", (
        "Book a hotel in {city} from {check_in} for {nights} nights.",
        "I need a hotel room in {city}, {nights} nights, arriving on {check_in}.",
    )),
    "get_stock_price": ("Get the price of a stock", "symbol=ticker", (
        "What is the stock price of {symbol}?",
        "How is {symbol} stock doing?",
        "Show me the share price of {symbol}.",
        "Compare the stock prices of {symbol} and {symbol_2}.",
    )),
    "start_timer": ("Start a countdown timer", "minutes=int:2:90", (
        "Set a timer for {minutes} minutes.",
        "Timer, {minutes} minutes.",
    )),
    "create_note": ("Save a note", "text=task", (
        "Make a note: {text}.",
        "Note down: {text}.",
    )),
    "add_contact": ("Save a new contact", "name=person phone=phone", (
        "Save {name} as a contact, number {phone}.",
        "Add {name} to my contacts: {phone}.",
        "New contact: {name}, {phone}.",
    )),
    "send_message": ("Send a text message to a person", "recipient=person message=phrase", (
        'Text {recipient}: "{message}"',
        'Send {recipient} the message "{message}".',
        'Tell {recipient} by text message "{message}".',
    )),
    "search_files": ("Search my files", "keyword=topic", (
        "Find my files about {keyword}.",
        "Which of my files mention {keyword}?",
    )),
    "find_recipe": ("Find a cooking recipe", "dish=dish", (
        "Find a recipe for {dish}.",
    )),
    "calculate_tax": ("Calculate the tax on an amount", "amount=num:20:9000 rate=num:2:40", (
        "How much tax is due on {amount} at {rate} percent?",
        "Calculate {rate} percent tax on {amount}.",
        "What is the tax on {amount} with a rate of {rate} percent?",
    )),
    "get_distance": ("Get the distance between two cities",
                     "origin=city destination=city", (
        "How far is it from {origin} to {destination}?",
    )),
    "get_score": ("Get the latest score of a sports team", "team=team", (
        "What was the score of the {team} game?",
        "Did the {team} win?",
        "Show me the latest result of the {team}.",
        "Latest scores of the {team} and the {team_2}?",
    )),
    "track_package": ("Track a package", "tracking_number=tracking", (
        "Track package {tracking_number}.",
        "Where is my package {tracking_number} now?",
        "When does the parcel {tracking_number} arrive?",
        "Track the packages {tracking_number} and {tracking_number_2}.",
    )),
    "book_table": ("Book a restaurant table", "restaurant=restaurant guests=int:2:30 time=time", (
        "Book a table for {guests} at {restaurant} at {time}.",
        "Reserve a table at {restaurant} for {guests} people, {time}.",
        "We are {guests} people. Get us a table at {restaurant} at {time}.",
    )),
    "order_taxi": ("Order a taxi", "pickup=address destination=address", (
        "Order a taxi from {pickup} to {destination}.",
        "Get me a taxi to take me from {pickup} to {destination}.",
    )),
    "get_movie_times": ("Get the show times of a movie", "movie=movie city=city", (
        "When is {movie} showing in {city}?",
        "Show times of {movie} in {city}?",
        "I want to see the movie {movie} in {city}. When does it play?",
    )),
    "get_news": ("Get news headlines on a topic", "topic=topic", (
        "What is the latest news about {topic}?",
        "Any news on {topic}?",
        "Get me the news about {topic} and about {topic_2}.",
    )),
    "define_word": ("Look up a word in the dictionary", "word=word", (
        "What does the word {word} mean?",
        "Define {word}.",
        "Look up {word} in the dictionary.",
        "What do {word} and {word_2} mean?",
    )),
    "get_calories": ("Get the calories of a food", "food=dish grams=int:20:900", (
        "How many calories are in {grams} grams of {food}?",
        "Calories of {grams} g of {food}?",
        "I ate {grams} grams of {food}. How many calories is that?",
    )),
    "get_time": ("Get the current time in a city", "city=city", (
        "What time is it in {city}?",
        "Tell me the current time in {city}.",
        "What time is it in {city}, {city_2} and {city_3}?",
    )),
    "get_product": ("Look up a product by its id", "product_id=int:1000:9999", (
        "Show me product {product_id}.",
        "What is the product with id {product_id}?",
        "Give me the details of product number {product_id}.",
        "Show me the products {product_id} and {product_id_2}.",
    )),
}  # fmt: skip

# What a parameter's name does not say.
PARAMETER_NOTES = {
    "days": "Number of days",
    "max_price": "Highest price",
    "check_in": "Day of arrival",
    "symbol": "Ticker symbol",
    "language": "Target language",
    "symbols": "Use symbols too",
    "brightness": "In percent",
    "rate": "In percent",
    "limit": "Number of headlines",
    "to": "Email address",
    "label": "Name of the timer",
    "guests": "Number of people",
    "quantity": "Pieces wanted",
    "pickup": "Street address",
}

# Tools of one group are too close to say that one of them cannot do the work of another.
GROUPS = (
    ("calculate", "calculate_tax", "convert_currency"),
    ("search_products", "get_product", "get_order_status", "track_package"),
    ("create_event", "set_reminder", "start_timer", "create_note", "get_time"),
    ("send_email", "send_message", "add_contact", "translate_text"),
    ("search_flights", "get_distance", "order_taxi", "book_hotel", "book_table"),
    ("set_thermostat", "get_weather"),
    ("find_recipe", "get_calories"),
    ("get_news", "search_files", "define_word", "get_score", "get_stock_price"),
    ("play_music", "get_movie_times"),
)

# What a tool answers with: key, kind of its value, and the assistant's sentence about it.
RESULTS = {
    "get_weather": ("temperature", "int:-9:38", "It is {result} degrees in {city}."),
    "convert_currency": ("converted", "num:3:9000", "{amount} {from_currency} is {result} {to_currency}."),
    "get_order_status": ("expected", "date", "Order {order_id} is expected on {result}."),
    "get_stock_price": ("price", "num:10:900", "{symbol} stands at {result}."),
    "calculate_tax": ("tax", "num:2:900", "The tax is {result}."),
    "get_distance": ("kilometers", "int:100:9000", "{origin} and {destination} are {result} km apart."),
    "track_package": ("location", "city", "Your package is in {result}."),
    "get_movie_times": ("starts", "time", "{movie} starts at {result}."),
    "get_calories": ("calories", "int:30:900", "That is {result} calories."),
    "get_time": ("time", "time", "It is {result} in {city}."),
    "get_product": ("product", "product", "Product {product_id} is a {result}."),
}

NO_TOOL_ANSWERS = (
    "None of the available tools can help with this request.",
    "I have no tool for this request.",
    "Sorry, the available tools cannot do this.",
)
# Questions that no tool answers, in addition to those of tools which are not offered.
NO_TOOL_QUESTIONS = (
    "Write a short poem about {topic}.",
    "Tell me a joke about {topic}.",
    "Why do people care about {topic}?",
    "What do you personally think of {city}?",
    "Draw me a picture of {city}.",
)


def schema(name: str) -> dict[str, Any]:
    """Return a tool of the catalogue as a JSON schema."""
    description, parameters, _ = TOOLS[name]
    properties: dict[str, dict[str, Any]] = {}
    for key, kind in kinds(parameters).items():
        prop: dict[str, Any] = {"type": "string"}
        if kind == "bool":
            prop["type"] = "boolean"
        elif kind.startswith(("int:", "num:")):
            prop["type"] = "integer" if kind.startswith("int:") else "number"
        if key in PARAMETER_NOTES:
            prop["description"] = PARAMETER_NOTES[key]
        if "|" in kind:
            prop["enum"] = kind.split("|")
        properties[key] = prop
    required = [key for key in properties if re.search(rf"\b{key}=", parameters)]
    return {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": properties, "required": required},
    }


def kinds(parameters: str) -> dict[str, str]:
    """Read the kinds of a tool's parameters, for example `city=city days?=int:2:30`."""
    parts = (part.split("=") for part in re.split(r"\s(?=\w+\??=)", parameters))
    return {key.rstrip("?"): kind for key, kind in parts}
