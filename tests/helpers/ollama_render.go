// Renders conversations with a template of Ollama, on the fields that Ollama gives to templates.
//
// Input: JSON lines {"messages", "tools"} of OpenAI's shape. Output: a JSON string a line.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Call struct {
	Function struct {
		Name      string
		Arguments map[string]any
	}
}

type Message struct {
	Role      string
	Content   string
	Thinking  string `json:"reasoning_content"`
	ToolCalls []Call `json:"tool_calls"`
}

type Property struct {
	AnyOf       []Property          `json:"anyOf,omitempty"`
	Type        any                 `json:"type,omitempty"`
	Items       any                 `json:"items,omitempty"`
	Description string              `json:"description,omitempty"`
	Enum        []any               `json:"enum,omitempty"`
	Properties  map[string]Property `json:"properties,omitempty"`
	Required    []string            `json:"required,omitempty"`
}

type Tool struct {
	Function struct {
		Name        string
		Description string
		Parameters  struct {
			Type       string
			Properties map[string]Property
			Required   []string
		}
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	source, err := os.ReadFile(os.Args[1])
	check(err)
	functions := template.FuncMap{"json": func(value any) string {
		written, _ := json.Marshal(value)
		return string(written)
	}}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(string(source))
	check(err)
	lines := bufio.NewReader(os.Stdin)
	decoder := json.NewDecoder(lines)
	for decoder.More() {
		var request struct {
			Messages []Message
			Tools    []Tool
		}
		check(decoder.Decode(&request))
		var system []string
		for _, message := range request.Messages {
			if message.Role == "system" {
				system = append(system, message.Content)
			}
		}
		var text strings.Builder
		values := map[string]any{"Messages": request.Messages, "Tools": request.Tools, "System": strings.Join(system, "\n\n")}
		check(parsed.Execute(&text, values))
		written, err := json.Marshal(text.String())
		check(err)
		os.Stdout.Write(append(written, '\n'))
	}
}
