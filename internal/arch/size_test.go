// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a package and a struct may grow to before they have to be cut.
const (
	maxLines  = 4000 // of a package, without tests and generated files
	maxFields = 15   // of a struct whose fields more than maxFiles files of its package use
	maxFiles  = 2
)

// largeStructs are those beyond maxFields and maxFiles. The list may only shrink.
var largeStructs = []string{
	"internal/announce/members.Members",
	"internal/announce/members.peer",
	"internal/proxy/ipvs.Backend",
	"internal/proxy/userspace.proxy",
}

// product returns the packages that the products are made of.
func product(t *testing.T) []listed {
	t.Helper()
	all := list(t)
	linked := map[string]bool{}
	for _, p := range all {
		for _, root := range products {
			if p.ImportPath == module+root {
				linked[p.ImportPath] = true
				for _, dep := range p.Deps {
					linked[dep] = true
				}
			}
		}
	}
	return slices.DeleteFunc(all, func(p listed) bool { return !linked[p.ImportPath] })
}

// written returns the files of a package that are written by hand.
func written(t *testing.T, p listed) (files []string) {
	t.Helper()
	for _, name := range p.GoFiles {
		if !strings.HasPrefix(name, "zz_generated") {
			files = append(files, filepath.Join(p.Dir, name))
		}
	}
	return files
}

func TestPackageSize(t *testing.T) {
	for _, p := range product(t) {
		lines := 0
		for _, file := range written(t, p) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines += bytes.Count(text, []byte("\n"))
		}
		if lines > maxLines {
			t.Errorf("%s has %d lines: cut it, a package has at most %d", p.ImportPath, lines, maxLines)
		}
	}
}

// TestLargeStructsAreNotShared looks at the structs that have many fields: only one
// or two files may know them by their fields.
func TestLargeStructsAreNotShared(t *testing.T) {
	packages := product(t)
	var imported []string
	for _, p := range packages {
		imported = append(imported, p.Imports...)
	}
	slices.Sort(imported)
	exports := map[string]string{}
	for _, p := range listExports(t, slices.Compact(imported)) {
		exports[p.ImportPath] = p.Export
	}
	files := token.NewFileSet()
	from := importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	var large []string
	for _, p := range packages {
		large = append(large, sharedStructs(t, files, from, p)...)
	}
	slices.Sort(large)
	for _, name := range large {
		if !slices.Contains(largeStructs, name) {
			t.Errorf("%s has more than %d fields and more than %d files use them: cut it by what belongs together", name, maxFields, maxFiles)
		}
	}
	for _, name := range largeStructs {
		if !slices.Contains(large, name) {
			t.Errorf("%s is no longer an exception: take it out of largeStructs", name)
		}
	}
}

// sharedStructs returns the structs of a package that are beyond the bounds.
func sharedStructs(t *testing.T, files *token.FileSet, from types.Importer, p listed) (names []string) {
	t.Helper()
	var parsed []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
	}
	info := types.Info{Uses: map[*ast.Ident]types.Object{}}
	pkg, err := (&types.Config{Importer: from}).Check(p.ImportPath, files, parsed, &info)
	if err != nil {
		t.Fatal(err)
	}
	usedIn := map[types.Object]map[string]bool{} // by field
	for ident, object := range info.Uses {
		if field, ok := object.(*types.Var); ok && field.IsField() {
			field = field.Origin()
			if usedIn[field] == nil {
				usedIn[field] = map[string]bool{}
			}
			usedIn[field][files.Position(ident.Pos()).Filename] = true
		}
	}
	for _, name := range pkg.Scope().Names() {
		object, ok := pkg.Scope().Lookup(name).(*types.TypeName)
		if !ok || object.IsAlias() {
			continue
		}
		s, ok := object.Type().Underlying().(*types.Struct)
		if !ok || s.NumFields() <= maxFields {
			continue
		}
		users := map[string]bool{}
		for field := range s.Fields() {
			maps.Copy(users, usedIn[field])
		}
		if len(users) > maxFiles {
			names = append(names, strings.TrimPrefix(p.ImportPath, module)+"."+name)
		}
	}
	return names
}

// TestArchitecturePage compares docs/architecture.md with the packages: each that
// it names exists, and each that a product is made of is named in its tables.
func TestArchitecturePage(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	for _, p := range list(t) {
		for path := strings.TrimPrefix(p.ImportPath, module); path != "."; path = filepath.Dir(path) {
			exists[path] = true
		}
	}
	named := map[string]bool{}
	for _, path := range packagesNamed(string(text)) {
		named[path] = true
		if !exists[path] {
			t.Errorf("docs/architecture.md names %s, which does not exist", path)
		}
	}
	for _, p := range product(t) {
		if path := strings.TrimPrefix(p.ImportPath, module); !named[path] {
			t.Errorf("docs/architecture.md does not name %s", path)
		}
	}
}

var (
	quoted  = regexp.MustCompile("`([^`]+)`")
	place   = regexp.MustCompile(`^(api|controllers|internal|cmd)(/[a-z0-9{},-]+)*$`)
	choices = regexp.MustCompile(`^(.*)\{(.*)\}(.*)$`)
)

// packagesNamed returns the packages that a page names: `internal/a`,
// `internal/{a,b}`, and in the first column of a table `internal/a` (`b`) for
// internal/a/b.
func packagesNamed(page string) (paths []string) {
	for line := range strings.Lines(page) {
		cells := strings.Split(line, "|")
		for i, cell := range cells {
			base := ""
			for _, match := range quoted.FindAllStringSubmatch(cell, -1) {
				switch path := match[1]; {
				case place.MatchString(path):
					base = path
					if c := choices.FindStringSubmatch(path); c != nil {
						for choice := range strings.SplitSeq(c[2], ",") {
							paths = append(paths, c[1]+choice+c[3])
						}
						continue
					}
					paths = append(paths, path)
				case i == 1 && base != "":
					paths = append(paths, base+"/"+path)
				}
			}
		}
	}
	return paths
}
