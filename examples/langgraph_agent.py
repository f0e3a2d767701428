"""A LangGraph agent with real tools, on a model fine-tuned with fc-lightning.

Export a trained model, serve it, and run the agent (``pip install -e ".[serve,agent]"``)::

    python main.py export --config configs/quickstart.yaml --ckpt_path best --output exported
    transformers serve ./exported --port 8000
    python examples/langgraph_agent.py ./exported
    python examples/langgraph_agent.py ./exported --ask "How is order ORD-4821 doing?" --ask "What is 17 times 23.5?"

The model reasons, calls tools, reads their responses, and answers. Everything runs on the local machine: a calculator,
a shop in SQLite, a clock. Each ``--ask`` starts a conversation; ``--ask "… | …"`` asks two questions in one.
"""

from __future__ import annotations

import argparse
import json
import operator
import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, TypedDict
from zoneinfo import ZoneInfo

from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from openai import OpenAI

Message = dict[str, Any]
TOOLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
ZONES = {
    "Berlin": "Europe/Berlin", "Helsinki": "Europe/Helsinki", "London": "Europe/London", "Seoul": "Asia/Seoul",
    "Singapore": "Asia/Singapore", "Montreal": "America/Toronto", "San Diego": "America/Los_Angeles",
}  # fmt: skip
PRODUCTS = [
    (3141, "leather belt", 24.5),
    (5163, "camping stove", 39.0),
    (6402, "wall clock", 18.9),
    (7713, "bicycle helmet", 54.0),
]
ORDERS = [("ORD-4821", 5163, "2026-12-03"), ("ORD-7254", 6402, "2026-12-09"), ("ORD-9306", 7713, "2026-12-12")]
QUESTIONS = [
    "What time is it in Helsinki? | What time is it in Seoul?",
    "Where is my order ORD-9306?",
    "Check the orders ORD-4821 and ORD-7254.",
    "Show me product 6402.",
    "Tell me a joke about quantum computers.",
]


def tool(description: str, **parameters: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Offer a function to the model. Each parameter is given as a JSON type, or as a JSON schema."""

    def offer(function: Callable[..., Any]) -> Callable[..., Any]:
        properties = {name: json.loads(kind) if kind[0] == "{" else {"type": kind} for name, kind in parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(parameters)}
        described = {"name": function.__name__, "description": description, "parameters": schema}
        TOOLS[function.__name__] = (function, {"type": "function", "function": described})
        return function

    return offer


def shop() -> sqlite3.Connection:
    """A small shop in memory."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
    database.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, product INTEGER, expected TEXT)")
    database.executemany("INSERT INTO products VALUES (?, ?, ?)", PRODUCTS)
    database.executemany("INSERT INTO orders VALUES (?, ?, ?)", ORDERS)
    return database


SHOP = shop()


@tool(
    "Do arithmetic on two numbers",
    a="number",
    b="number",
    operation='{"type": "string", "enum": ["plus", "minus", "times", "divided by"]}',
)
def calculate(a: float, b: float, operation: str) -> dict[str, Any]:
    steps = {"plus": operator.add, "minus": operator.sub, "times": operator.mul, "divided by": operator.truediv}
    return {"result": round(steps[operation](a, b), 6)}


@tool("Look up a product by its id", product_id="integer")
def get_product(product_id: int) -> dict[str, Any]:
    row = SHOP.execute("SELECT name, price FROM products WHERE id = ?", (product_id,)).fetchone()
    if row is None:
        raise LookupError(f"product {product_id} not found")
    return {"product": row[0], "price": row[1]}


@tool("Look up the status of an order", order_id="string")
def get_order_status(order_id: str) -> dict[str, Any]:
    row = SHOP.execute("SELECT expected FROM orders WHERE id = ?", (order_id,)).fetchone()
    if row is None:
        raise LookupError(f"order {order_id} not found")
    return {"expected": row[0]}


@tool("Get the current time in a city", city="string")
def get_time(city: str) -> dict[str, Any]:
    if city not in ZONES:
        raise LookupError(f"unknown city {city}")
    return {"time": datetime.now(ZoneInfo(ZONES[city])).strftime("%H:%M")}


class State(TypedDict):
    """The conversation in OpenAI format. The messages that a node returns are appended."""

    messages: Annotated[list[Message], operator.add]


class Agent:
    """Alternates between model and tools until the model answers.

    Args:
        client: A client of an OpenAI-compatible server.
        model: Name of the model on the server.
        offered: Names of the offered tools; all of them by default.
    """

    def __init__(self, client: OpenAI, model: str, offered: list[str] | None = None):
        self.client, self.model = client, model
        self.tools = [schema for name, (_, schema) in TOOLS.items() if offered is None or name in offered]
        graph = StateGraph(State)
        graph.add_node("model", self.ask_model)
        graph.add_node("tools", self.run_tools)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].get("tool_calls") else END)
        graph.add_edge("tools", "model")
        self.graph = graph.compile()

    def ask_model(self, state: State) -> State:
        """Generate one model turn."""
        answer = self.client.chat.completions.create(
            model=self.model, messages=state["messages"], tools=self.tools, temperature=0.0, max_tokens=256
        )
        return {"messages": [answer.choices[0].message.model_dump(exclude_none=True)]}

    def run_tools(self, state: State) -> State:
        """Run the calls of the last turn. The error of a tool is its response."""
        responses = []
        for call in state["messages"][-1]["tool_calls"]:
            name = call["function"]["name"]
            try:
                result = TOOLS[name][0](**json.loads(call["function"]["arguments"]))
            except Exception as error:  # the model sees any error
                result = {"error": f"{type(error).__name__}: {error}"}
            content = json.dumps({"name": name, "content": result})
            responses.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        return {"messages": responses}

    def ask(self, messages: list[Message], most_steps: int = 8) -> list[Message]:
        """Continue a conversation until the model answers. Prints new messages and returns all of them."""
        for message in messages[-1:]:
            show(message)
        try:
            for update in self.graph.stream({"messages": messages}, {"recursion_limit": most_steps}):
                new = [message for node in update.values() for message in node["messages"]]
                messages = messages + new
                for message in new:
                    show(message)
        except GraphRecursionError:
            print(f"     (no answer after {most_steps} steps)")
        return messages


def show(message: Message) -> None:
    """Print a message, one line per part."""
    if message.get("reasoning_content"):
        print(f"  reason | {message['reasoning_content']}")
    for call in message.get("tool_calls") or []:
        print(f"    call | {call['function']['name']}({call['function']['arguments']})")
    if message.get("content"):
        print(f"{'answer' if message['role'] == 'assistant' else message['role']:>8} | {message['content']}")


def main() -> None:
    """Ask the questions of the command line, or the default ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="name of the model on the server: for transformers serve, its folder")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--ask", action="append", metavar="QUESTION", help="a question; 'one | two' asks both in one conversation"
    )
    arguments = parser.parse_args()
    agent = Agent(OpenAI(base_url=arguments.base_url, api_key="none"), arguments.model)
    for conversation in arguments.ask or QUESTIONS:
        messages: list[Message] = []
        for question in conversation.split("|"):
            messages = agent.ask([*messages, {"role": "user", "content": question.strip()}])
        print()


if __name__ == "__main__":
    main()
