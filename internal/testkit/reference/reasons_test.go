// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// product are the trees whose packages write conditions and events, and not those in
// them that do not: the announcer's reasons are sentences, of which the agent makes
// conditions, and those of a packet's way are sentences too.
var (
	product = []string{"api", "cmd", "controllers", "internal"}
	not     = []string{"internal/lab", "internal/testkit", "internal/announce", "internal/inspect"}
)

// TestConditionsAndEvents: the reference has each condition and each reason, and
// nothing else.
func TestConditionsAndEvents(t *testing.T) {
	src := read(t)
	types, reasons := src.find("condition type", isType), src.find("reason", isReason)
	for _, w := range slices.Concat(types.unknown, reasons.unknown) {
		t.Error(w)
	}
	documented := func(heading string, cells ...int) map[string]string {
		out := map[string]string{}
		for _, row := range rows(t, heading) {
			for _, i := range cells {
				for _, name := range names(row, i) {
					out[name] = heading
				}
			}
		}
		return out
	}
	conditions := documented("Conditions", 0)
	said := documented("Conditions", 1)
	events := documented("Events", 0)
	maps.Copy(said, events)
	compare := func(what string, want, have map[string]string) {
		t.Helper()
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if have[name] == "" {
				t.Errorf("%s has no row of the %s %s (%s): add one that says what to do", page, what, name, want[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(have)) {
			if want[name] == "" {
				t.Errorf("%s, %s: nobody writes the %s %s: take it away", page, have[name], what, name)
			}
		}
	}
	compare("condition", types.found, conditions)
	compare("reason", reasons.found, said)
	for name, where := range reasons.events {
		if events[name] == "" {
			t.Errorf("%s, Events: no row of the event %s (%s)", page, name, where)
		}
	}
}

// source is the product's, by directory.
type source struct {
	fset     *token.FileSet
	packages map[string][]*ast.File
	consts   map[string]map[string]constant   // directory -> name
	structs  map[string]map[string][]string   // directory -> type -> fields
	funcs    map[string]map[string][]string   // directory -> function -> parameters
	returns  map[string]map[string][]ast.Expr // directory -> function -> what it returns first
	dirs     map[string]string                // package name -> directory
}

type constant struct {
	value ast.Expr
	typed bool
}

func read(t *testing.T) *source {
	t.Helper()
	s := &source{
		fset: token.NewFileSet(), packages: map[string][]*ast.File{}, consts: map[string]map[string]constant{},
		structs: map[string]map[string][]string{}, funcs: map[string]map[string][]string{}, returns: map[string]map[string][]ast.Expr{}, dirs: map[string]string{},
	}
	top := root(t)
	for _, tree := range product {
		err := filepath.WalkDir(filepath.Join(top, tree), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(top, path)
			switch {
			case err != nil:
				return err
			case d.IsDir() && (slices.Contains(not, rel) || d.Name() == "testdata"):
				return fs.SkipDir
			case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			f, err := parser.ParseFile(s.fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			dir := filepath.Dir(rel)
			s.packages[dir] = append(s.packages[dir], f)
			s.dirs[f.Name.Name] = dir
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, files := range s.packages {
		s.consts[dir], s.structs[dir], s.funcs[dir], s.returns[dir] = map[string]constant{}, map[string][]string{}, map[string][]string{}, map[string][]ast.Expr{}
		for _, f := range files {
			for _, d := range f.Decls {
				s.declared(dir, d)
			}
		}
	}
	return s
}

func (s *source) declared(dir string, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		s.funcs[dir][d.Name.Name] = fieldNames(d.Type.Params)
		ast.Inspect(d, func(n ast.Node) bool {
			if r, ok := n.(*ast.ReturnStmt); ok && len(r.Results) > 0 {
				s.returns[dir][d.Name.Name] = append(s.returns[dir][d.Name.Name], r.Results[0])
			}
			_, inner := n.(*ast.FuncLit)
			return !inner
		})
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if st, ok := spec.Type.(*ast.StructType); ok {
					s.structs[dir][spec.Name.Name] = fieldNames(st.Fields)
				}
			case *ast.ValueSpec:
				for i, name := range spec.Names {
					if d.Tok == token.CONST && i < len(spec.Values) {
						s.consts[dir][name.Name] = constant{spec.Values[i], spec.Type != nil}
					}
				}
			}
		}
	}
}

func fieldNames(list *ast.FieldList) []string {
	var out []string
	for _, f := range list.List {
		if len(f.Names) == 0 {
			out = append(out, "")
		}
		for _, n := range f.Names {
			out = append(out, n.Name)
		}
	}
	return out
}

// isReason tells of a field, parameter or variable by its name.
func isReason(name string) bool { return name == "reason" || name == "Reason" || name == "fine" }

func isType(name string) bool { return name == "conditionType" }

// search finds what things of some names are given.
type search struct {
	*source
	what    string
	is      func(name string) bool
	found   map[string]string // -> where
	events  map[string]string // those of them that are given to an event
	unknown []string
	dir     string
}

func (s *source) find(what string, is func(string) bool) *search {
	x := &search{source: s, what: what, is: is, found: map[string]string{}, events: map[string]string{}}
	for _, dir := range slices.Sorted(maps.Keys(s.packages)) {
		x.dir = dir
		for name, c := range s.consts[dir] {
			if strings.HasPrefix(strings.ToLower(name), what) && !c.typed {
				x.given(c.value)
			}
		}
		for _, f := range s.packages[dir] {
			ast.Inspect(f, func(n ast.Node) bool { x.look(n); return true })
		}
	}
	return x
}

// word is what conditions and events take for a reason, and, with a domain in front
// of it, for a type. Others are no reasons of theirs.
var word = regexp.MustCompile(`^([a-z.]+/)?[A-Z][A-Za-z]+$`)

func (x *search) add(value, where string, to ...map[string]string) {
	if word.MatchString(value) {
		for _, m := range to {
			m[value] = where
		}
	}
}

func (x *search) look(n ast.Node) {
	switch n := n.(type) {
	case *ast.CompositeLit:
		x.composite(n, n.Type)
	case *ast.AssignStmt:
		for i, to := range n.Lhs {
			if i < len(n.Rhs) && len(n.Lhs) == len(n.Rhs) && x.is(last(to)) {
				x.given(n.Rhs[i])
			}
		}
	case *ast.CallExpr:
		dir := x.dir
		if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
			if p, ok := sel.X.(*ast.Ident); ok && x.dirs[p.Name] != "" && x.funcs[x.dirs[p.Name]][sel.Sel.Name] != nil {
				dir = x.dirs[p.Name]
			}
		}
		for i, name := range x.funcs[dir][last(n.Fun)] {
			if x.is(name) && i < len(n.Args) {
				x.given(n.Args[i])
			}
		}
		if last(n.Fun) == "Eventf" && x.is("reason") && len(n.Args) > 5 {
			x.given(n.Args[3], x.events)
		}
	}
}

// composite looks at a literal of a struct, or of those in it that leave their type
// out.
func (x *search) composite(n *ast.CompositeLit, of ast.Expr) {
	if a, ok := of.(*ast.ArrayType); ok {
		for _, e := range n.Elts {
			if c, ok := e.(*ast.CompositeLit); ok && c.Type == nil {
				x.composite(c, a.Elt)
			}
		}
		return
	}
	name, dir := last(of), x.dir
	if sel, ok := of.(*ast.SelectorExpr); ok {
		if p, ok := sel.X.(*ast.Ident); ok {
			dir = x.dirs[p.Name]
		}
	}
	for i, e := range n.Elts {
		field := ""
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			field, e = last(kv.Key), kv.Value
		} else if fields := x.structs[dir][name]; i < len(fields) {
			field = fields[i]
		}
		if x.is(field) || x.is("conditionType") && field == "Type" && strings.HasSuffix(name, "Condition") {
			x.given(e)
		}
	}
}

// given follows an expression to the constants that it may be.
func (x *search) given(e ast.Expr, also ...map[string]string) {
	where := x.fset.Position(e.Pos())
	at := fmt.Sprintf("%s/%s:%d", x.dir, filepath.Base(where.Filename), where.Line)
	to := append([]map[string]string{x.found}, also...)
	switch e := e.(type) {
	case *ast.BasicLit:
		value, _ := strconv.Unquote(e.Value)
		x.add(value, at, to...)
		return
	case *ast.Ident, *ast.SelectorExpr:
		dir := x.dir
		if sel, ok := e.(*ast.SelectorExpr); ok {
			if p, ok := sel.X.(*ast.Ident); ok && x.dirs[p.Name] != "" {
				dir = x.dirs[p.Name]
			}
		}
		if c, ok := x.consts[dir][last(e)]; ok {
			if !c.typed || x.is("conditionType") { // a reason of its own type is for the code alone
				was := x.dir
				x.dir = dir
				x.given(c.value, also...)
				x.dir = was
			}
			return
		}
		switch name := last(e); {
		case x.is(name), x.is("conditionType") && name == "Type":
			return // what that is given is looked at
		case strings.HasPrefix(name, "StatusReason"):
			return // of an answer to a request
		}
	case *ast.CallExpr:
		switch name := last(e.Fun); {
		case name == "Join": // errors.Join
			return
		case name == "Or": // cmp.Or
			for _, a := range e.Args {
				x.given(a, also...)
			}
			return
		case name == "string" && len(e.Args) == 1:
			x.given(e.Args[0], also...)
			return
		case x.returns[x.dir][name] != nil:
			for _, r := range x.returns[x.dir][name] {
				x.given(r, also...)
			}
			return
		}
	}
	x.unknown = append(x.unknown, fmt.Sprintf("%s: this test cannot tell which %s that is: give it a constant, or what has a name that this test follows", at, x.what))
}

// last is the last name of an expression such as a.b.C, or of what it points to.
func last(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.StarExpr:
		return last(e.X)
	}
	return ""
}
