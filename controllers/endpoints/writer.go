// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// errOutdated is returned when the index lagged behind the API and was updated: the plan has
// to be computed again.
var errOutdated = errors.New("slices changed meanwhile")

// parallelWrites is how many slices of one Service are written at a time.
const parallelWrites = 16

// sliceWriter carries out plans and puts the results into the index immediately, so that the
// next pass does not have to wait for the watch.
type sliceWriter struct {
	client client.Client
	// live reads past the cache.
	live  client.Reader
	index *endpointslice.Index
}

// write carries out a plan: creates and updates in parallel, then the updates
// that give endpoints away, then the deletes, each if all before succeeded. It
// returns errOutdated if another writer was there first, and otherwise what
// failed, joined; all that could be written has been.
func (w *sliceWriter) write(ctx context.Context, plan *endpointslice.Plan) error {
	creates := len(plan.Create)
	err := atOnce(slices.Concat(plan.Create, plan.Update), func(i int, slice *discoveryv1.EndpointSlice) error {
		if i < creates {
			return w.create(ctx, slice)
		}
		return w.update(ctx, slice)
	})
	if err != nil {
		return err
	}
	err = atOnce(plan.Shrink, func(_ int, slice *discoveryv1.EndpointSlice) error { return w.update(ctx, slice) })
	if err != nil {
		return err
	}
	return w.delete(ctx, plan.Delete)
}

func (w *sliceWriter) delete(ctx context.Context, list []*discoveryv1.EndpointSlice) error {
	return atOnce(list, func(_ int, slice *discoveryv1.EndpointSlice) error { return w.deleteOne(ctx, slice) })
}

// atOnce makes one write for each slice, several at a time, and joins the errors.
func atOnce(list []*discoveryv1.EndpointSlice, write func(int, *discoveryv1.EndpointSlice) error) error {
	group, errs := new(errgroup.Group), make([]error, len(list))
	group.SetLimit(parallelWrites)
	for i, slice := range list {
		group.Go(func() error {
			errs[i] = write(i, slice)
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs
	return joinOutdated(errs)
}

// joinOutdated joins the errors; real ones outweigh errOutdated.
func joinOutdated(errs []error) error {
	outdated := slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, errOutdated) })
	err := errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, errOutdated) })...)
	if err == nil && outdated {
		return errOutdated
	}
	return err
}

func (w *sliceWriter) create(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	created := slice.DeepCopy()
	err := w.client.Create(ctx, created)
	sliceWrites.WithLabelValues("create", resultOf(err)).Inc()
	switch {
	case err == nil:
		w.index.SetSlice(created)
		return nil
	case apierrors.IsAlreadyExists(err):
		return w.nameTaken(ctx, slice)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // the namespace is being deleted, and the slices with it
	}
	return fmt.Errorf("create EndpointSlice %s: %w", slice.Name, err)
}

// nameTaken handles a name that is in use. If the slice is the Service's, of a create that was
// reported as failed, it is put into the index. If it is another's, or a finalizer keeps
// it though it is deleted, the API server chooses another name.
func (w *sliceWriter) nameTaken(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	existing, err := w.refresh(ctx, slice)
	if err != nil {
		return err
	}
	label := discoveryv1.LabelServiceName
	if existing == nil || existing.Labels[label] == slice.Labels[label] && existing.DeletionTimestamp == nil {
		return errOutdated
	}
	other := slice.DeepCopy()
	other.GenerateName, other.Name = slice.Name+"-", ""
	err = w.client.Create(ctx, other)
	sliceWrites.WithLabelValues("create", resultOf(err)).Inc()
	if err != nil {
		return fmt.Errorf("create EndpointSlice %s: %w", other.GenerateName, err)
	}
	w.index.SetSlice(other)
	return nil
}

func (w *sliceWriter) update(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	updated := slice.DeepCopy()
	err := w.client.Update(ctx, updated)
	sliceWrites.WithLabelValues("update", resultOf(err)).Inc()
	switch {
	case err == nil:
		w.index.SetSlice(updated)
		return nil
	case apierrors.IsNotFound(err):
		w.index.ForgetSlice(slice)
		return errOutdated
	}
	return w.failed(ctx, "update", slice, err)
}

// deleteOne deletes the slice in the version that the decision was made on: a
// later one may hold endpoints that are wanted.
func (w *sliceWriter) deleteOne(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	err := w.client.Delete(ctx, slice, client.Preconditions{UID: &slice.UID, ResourceVersion: &slice.ResourceVersion})
	sliceWrites.WithLabelValues("delete", resultOf(err)).Inc()
	switch {
	case err == nil, apierrors.IsNotFound(err):
		w.index.ForgetSlice(slice)
		return nil
	}
	return w.failed(ctx, "delete", slice, err)
}

// failed returns errOutdated for a conflicting write, after it has updated the index.
func (w *sliceWriter) failed(ctx context.Context, verb string, slice *discoveryv1.EndpointSlice, err error) error {
	if !apierrors.IsConflict(err) {
		return fmt.Errorf("%s EndpointSlice %s: %w", verb, slice.Name, err)
	}
	if _, err := w.refresh(ctx, slice); err != nil {
		return err
	}
	return errOutdated
}

// refresh puts into the index the slice of this name in the API, and returns it; nil if there
// is none.
func (w *sliceWriter) refresh(ctx context.Context, slice *discoveryv1.EndpointSlice) (*discoveryv1.EndpointSlice, error) {
	existing := &discoveryv1.EndpointSlice{}
	err := w.live.Get(ctx, client.ObjectKeyFromObject(slice), existing)
	if apierrors.IsNotFound(err) {
		w.index.ForgetSlice(slice)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get EndpointSlice %s: %w", slice.Name, err)
	}
	if existing.UID != slice.UID && slice.UID != "" {
		w.index.ForgetSlice(slice)
	}
	w.index.SetSlice(existing)
	return existing, nil
}

// refreshAll puts into the index the Service's slices in the API; known are those that the
// index had.
func (w *sliceWriter) refreshAll(ctx context.Context, name types.NamespacedName, known []*discoveryv1.EndpointSlice) error {
	var list discoveryv1.EndpointSliceList
	err := w.live.List(ctx, &list, client.InNamespace(name.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: name.Name})
	if err != nil {
		return fmt.Errorf("list EndpointSlices: %w", err)
	}
	there := map[types.UID]bool{}
	for i := range list.Items {
		there[list.Items[i].UID] = true
		w.index.SetSlice(&list.Items[i])
	}
	for _, slice := range known {
		if !there[slice.UID] {
			w.index.ForgetSlice(slice)
		}
	}
	return nil
}

// resultOf is the value of the label "result" of metrics.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "success"
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		return "outdated"
	}
	return "error"
}
