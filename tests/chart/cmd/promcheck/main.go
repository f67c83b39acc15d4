// promcheck reads {"rules": "...", "queries": ["..."]} from standard input: a
// file of Prometheus rules, and queries. It prints what Prometheus would say
// against them, and which metrics they read: {"errors": [], "metrics": []}.
package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"

	// Its module has the definitions of the operator's resources, as files
	// beside the code.
	_ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

type input struct {
	Rules   string   `json:"rules"`
	Queries []string `json:"queries"`
}

type output struct {
	Errors  []string `json:"errors"`
	Metrics []string `json:"metrics"`
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fmt.Fprintln(os.Stderr, "promcheck: standard input:", err)
		os.Exit(1)
	}
	out := check(in)
	slices.Sort(out.Metrics)
	out.Metrics = slices.Compact(out.Metrics)
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, "promcheck:", err)
		os.Exit(1)
	}
}

func check(in input) output {
	out := output{Errors: []string{}, Metrics: []string{}}
	promql := parser.NewParser(parser.Options{})
	queries := in.Queries
	groups, errs := rulefmt.Parse([]byte(in.Rules), false, model.UTF8Validation, promql, slog.Default())
	for _, err := range errs {
		out.Errors = append(out.Errors, err.Error())
	}
	if groups != nil {
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				queries = append(queries, rule.Expr)
			}
		}
	}
	for _, query := range queries {
		expr, err := promql.ParseExpr(query)
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("%s: %v", query, err))
			continue
		}
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			if selector, ok := node.(*parser.VectorSelector); ok {
				out.Metrics = append(out.Metrics, selector.Name)
			}
			return nil
		})
	}
	return out
}
