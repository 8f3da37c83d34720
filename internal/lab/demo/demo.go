// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"

	"github.com/causeway-lb/causeway/internal/lab"
)

func install(ctx context.Context, l *lab.Lab, p *printer) error { return l.Install(ctx) }

func demonstrate(ctx context.Context, l *lab.Lab, options Options, p *printer) error { return nil }
