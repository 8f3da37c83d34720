// SPDX-License-Identifier: Apache-2.0

// Package quote puts text that somebody else wrote (annotations, names of older
// API servers, messages of conditions) into messages and onto terminals: bounded,
// on one line, and without characters that a terminal acts on or that look like
// others. It is pure, and what it gives is never empty unless the text is.
package quote

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Max is how many characters of foreign text a message has, and MaxLine of those
// that a line on a terminal has.
const (
	Max     = 253
	MaxLine = 1000
)

// Text returns a Go string literal of the text's first Max characters, with "..."
// after it where that is not all.
func Text(s string) string {
	short, cut := first(s, Max)
	if cut {
		return strconv.Quote(short) + "..."
	}
	return strconv.Quote(short)
}

// Name is Text without the quotes for what is printable and short, as names are.
func Name(s string) string {
	if short, cut := first(s, Max); !cut && Line(short) == short && !strings.ContainsAny(s, " \"") {
		return s
	}
	return Text(s)
}

// Line returns the text as one line of at most MaxLine characters in which all
// that is not graphic is escaped as in Go: control characters, line breaks, escape
// sequences, what turns the direction of writing, invisible and invalid ones.
func Line(s string) string {
	short, cut := first(s, MaxLine)
	var b strings.Builder
	for i, r := range short {
		if _, size := utf8.DecodeRuneInString(short[i:]); r == utf8.RuneError && size == 1 {
			b.WriteString(`\x` + strconv.FormatUint(uint64(short[i])|0x100, 16)[1:])
			continue
		}
		if r == ' ' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		escaped := strconv.QuoteRuneToASCII(r)
		b.WriteString(escaped[1 : len(escaped)-1])
	}
	if cut {
		b.WriteString("...")
	}
	return b.String()
}

// first returns the first n characters, and whether there are more.
func first(s string, n int) (string, bool) {
	if len(s) <= n {
		return s, false
	}
	for i := range s {
		if n == 0 {
			return s[:i], true
		}
		n--
	}
	return s, false
}

// List joins up to five items with commas, and says how many more there are.
func List(items []string) string {
	const most = 5
	if len(items) > most {
		items = append(slices.Clone(items[:most]), fmt.Sprintf("and %d more", len(items)-most))
	}
	return strings.Join(items, ", ")
}

// Note cuts a text to the 1 kB that events.k8s.io accepts as the note of an event.
func Note(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
