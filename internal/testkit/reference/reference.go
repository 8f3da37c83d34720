// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// page is where the reference is, below the module's root.
const page = "docs/reference.md"

// root is the module's directory: that of go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod here or above")
		}
	}
}

// rows are those of the tables under a heading, which is without its marks: the
// cells of each, down to the next heading of the same level or a higher one.
func rows(t testing.TB, heading string) [][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	level := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		switch {
		case marks > 0 && strings.TrimSpace(line[marks:]) == heading:
			level = marks
		case marks > 0 && marks <= level:
			return out
		case level > 0 && strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|--"):
			// The heads of tables have no code, and so no names.
			cells := strings.Split(strings.TrimSuffix(line[1:], "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			out = append(out, cells)
		}
	}
	if level == 0 {
		t.Fatalf("%s has no heading %q", page, heading)
	}
	return out
}

var code = regexp.MustCompile("`([^`]+)`")

// names are what stands as code in a row's cell.
func names(cells []string, i int) []string {
	var out []string
	if i < len(cells) {
		for _, m := range code.FindAllStringSubmatch(cells[i], -1) {
			out = append(out, m[1])
		}
	}
	return out
}

// CheckFlags fails t unless the tables under heading have a row for each flag, with
// its default, and no others. Rows are | `--flag` | `default` | meaning |; a default
// that is empty has an empty cell.
func CheckFlags(t testing.TB, heading string, defaults map[string]string) {
	t.Helper()
	documented := map[string]string{}
	for _, row := range rows(t, heading) {
		for _, name := range names(row, 0) {
			name, ok := strings.CutPrefix(name, "--")
			if !ok {
				t.Errorf("%s, %s: %q begins no row of a flag", page, heading, name)
				continue
			}
			documented[name] = strings.Join(names(row, 1), " ")
			if len(row) != 3 || row[2] == "" {
				t.Errorf("%s, %s: --%s needs three cells: flag, default, meaning", page, heading, name)
			}
		}
	}
	for name, value := range defaults {
		if value == "[]" {
			value = ""
		}
		switch said, ok := documented[name]; {
		case !ok:
			t.Errorf("%s, %s: no row of --%s: add one", page, heading, name)
		case said != value:
			t.Errorf("%s, %s: --%s has the default %q there, and in truth %q", page, heading, name, said, value)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("%s, %s: there is no --%s any more: take its row away", page, heading, name)
	}
}

// CheckCommands does CheckFlags of a command and those below it, each under a heading
// that is the command line, as code. Flags that a command has from those above are
// theirs.
func CheckCommands(t testing.TB, command *cobra.Command) {
	t.Helper()
	defaults := map[string]string{}
	command.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { defaults[f.Name] = f.DefValue })
	command.PersistentFlags().VisitAll(func(f *pflag.Flag) { defaults[f.Name] = f.DefValue })
	if len(defaults) > 0 {
		CheckFlags(t, "`"+command.CommandPath()+"`", defaults)
	}
	for _, c := range command.Commands() {
		CheckCommands(t, c)
	}
}
